import dataclasses
import math

import pytest

from modegpt.cli.study import claims
from modegpt.errors import ModegptError
from modegpt.study import claims as kit
from modegpt.study import experiments
from modegpt.study.claims import Laboratory
from modegpt.study.experiments import EXPERIMENTS, PLANS, Plan
from modegpt.study.results import MEAN, Row, load, loss_per_million, mean_and_spread

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def plan(text_file, tmp_path) -> Plan:
    """The small plan on invented texts, smaller still, with three seeds."""
    texts = []
    for name, part in (("other", slice(0, 30_000)), ("third", slice(30_000, 60_000))):
        (tmp_path / f"{name}.txt").write_text(text_file.read_text()[part])
        texts.append(str(tmp_path / f"{name}.txt"))
    calibration = str(text_file)
    changes = {"calibration": calibration, "text": texts[0], "texts": tuple(texts), "windows": 2, "seq_len": 64}
    changes |= {"calibrations": (calibration, f"{calibration}+{texts[1]}"), "samples": 6, "calibration_length": 64}
    changes |= {"seeds": 3, "ratios": (0.2, 0.4), "sizes": (2, 6), "shares": (0.1,), "lengths": (32, 64)}
    changes |= {"retention": ((0.3, calibration), (0.25, "no/such.txt")), "questions": 3}
    return dataclasses.replace(PLANS["small"], **changes)


@pytest.fixture
def run(plan, modegpt, dense_folder, tmp_path, monkeypatch):
    """Runs `modegpt study claims` with that plan; returns the results by experiment."""
    monkeypatch.setitem(PLANS, "small", plan)
    out = tmp_path / "out"

    def call(*experiments):
        done = modegpt("study", "claims", *experiments, "--plan", "small", "--model", dense_folder, "--out", out)
        assert done.code == 0, done.err
        return {name: load(out / f"results/dense.{name}.json") for name in experiments}

    return call


@pytest.mark.parametrize("plan", PLANS)
def test_no_two_cases_of_an_experiment_have_one_key(plan):
    for name, experiment in EXPERIMENTS.items():
        keys = [case.key for case in experiment.cases(PLANS[plan])]
        assert len(set(keys)) == len(keys) and bool(keys) == (name != kit.TIME)


def test_perplexity_experiments(run, tmp_path):
    found = run("windows", "allocation", "resolve", "size", "modules")
    assert {row.details["seq_len"] for row in found["windows"].rows} == {32, 64}
    assert len(found["windows"].rows) == 2 * 2 * 2
    for name in ("allocation", "resolve"):
        assert len(found[name].rows) == 2 * 2 * 3 and {row.seed for row in found[name].rows} == {0, 1, 2}
    # the same model under two names is measured once and is the same
    both = (("allocation", "global allocation"), ("resolve", "selection and re-solve"), ("size", "6 samples"))
    values = [[row.value for row in found[name].find(variant=variant, ratio=0.2)] for name, variant in both]
    assert values[0] == values[1]
    assert [row.details["samples"] for row in found["size"].rows] == [2] * 3 + [6] * 3
    dense, *rest = found["modules"].rows
    for row in rest:
        assert row.details["block_ratio"] == pytest.approx(0.1, abs=0.03)
        removed = (row.details["parameters_before"] - row.details["parameters_after"]) / 1e6
        assert loss_per_million(row, dense) * removed == pytest.approx(math.log(row.value) - math.log(dense.value))
    for name in found:
        assert (tmp_path / f"out/dense.{name}.png").stat().st_size > 10_000


def test_the_resolve_is_worth_something_on_what_it_was_fitted_to(plan, dense_folder):
    """Selection only leaves W_down's rows, the re-solve makes the least squares error smaller."""
    laboratory = Laboratory(str(dense_folder), "cpu", plan)
    both = list(experiments.resolve(dataclasses.replace(plan, ratios=(0.4,), seeds=1)))
    models = [laboratory.compressed(case)[0] for case in both]
    kept = [model.model.layers[0].mlp.down_proj.weight for model in models]
    dense = laboratory.dense.model.layers[0].mlp.down_proj.weight
    columns = {tuple(column.tolist()) for column in dense.T}
    assert all(tuple(column.tolist()) in columns for column in kept[1].T)
    assert not any(tuple(column.tolist()) in columns for column in kept[0].T)


def test_a_mixed_calibration_takes_half_of_each(plan, dense_folder):
    laboratory = Laboratory(str(dense_folder), "cpu", plan)
    mixed = plan.calibrations[1]
    first, second = (laboratory.tokens(part, 3, 1) for part in mixed.split("+"))
    assert laboratory.tokens(mixed, 6, 1).tolist() == [*first.tolist(), *second.tolist()]


def test_calibration_and_evaluation_never_share_a_text(run, plan):
    rows = run("calibration")["calibration"].rows
    refused = [row for row in rows if row.error]
    assert {row.variant for row in refused} == {f"calibrated on {experiments.named(plan.calibrations[1])}"}
    assert all("would share the text" in row.error for row in refused)


def test_destinations_are_compared_with_free_ranks(run):
    rows = run("destinations")["destinations"].rows
    places = ("free", "stock", "gguf")
    assert {row.variant for row in rows} == {"dense"} | {
        f"modegpt{plus}, {p}" for plus in ("", "-plus") for p in places
    }
    assert {row.seed for row in rows if row.ratio} == {0, 1, 2}
    refused = [row for row in rows if row.error]  # 80 channels are too few for multiples of 32
    assert all(row.variant.endswith("gguf") and "multiples of 32" in row.error for row in refused)
    assert {row.variant for row in rows if row.value} >= {"modegpt, stock", "modegpt-plus, stock", "modegpt-plus, gguf"}


@pytest.mark.slow
def test_zero_shot_and_a_text_that_is_not_there(run):
    rows = run("retention")["retention"].rows
    assert [row.data for row in rows[:6]] == ["arc_easy", "arc_challenge", "piqa", "winogrande", "hellaswag", MEAN]
    assert rows[5].value == pytest.approx(sum(row.value for row in rows[:5]) / 5)
    assert all(row.details["items"] == 3 and sum(row.details["answers"]) == pytest.approx(1) for row in rows[:5])
    assert all(row.details["right"].count("1") / 3 == pytest.approx(row.value) for row in rows[:5])
    assert rows[-1].value is None and "no/such.txt" in rows[-1].error


def test_seconds_of_each_step(run):
    rows = run("time")["time"].rows
    steps = ["calibrate", "MLP: Nyström", "query-key: CR", "value-output: SVD", "new layers", "evaluate"]
    assert [row.variant for row in rows] == steps
    assert all(row.value >= 0 and row.unit == "s" for row in rows)


def test_an_interrupted_experiment_goes_on(run, monkeypatch, capsys):
    measure, calls = Laboratory.measure, []

    def broken(self, case):
        calls.append(case.key)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(self, case)

    with monkeypatch.context() as patch:
        patch.setattr(Laboratory, "measure", broken)
        with pytest.raises(AssertionError):
            run("resolve")
        rows = run("resolve")["resolve"].rows
    assert len(calls) == 5 + 12 - 4 and len(rows) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiments": ["speed"]}, "unknown experiment 'speed': use some of windows"),
        ({"plan_name": "huge"}, "unknown plan 'huge': use full or small or better or paper"),
        ({"sizes": "8,many"}, "--sizes is a list such as 8,32"),
    ],
)
def test_bad_options(options, message):
    known = {"experiments": None, "model": "none", "plan_name": "small", "questions": None, "seeds": None}
    with pytest.raises(ModegptError, match=message):
        claims(**known | {"sizes": None, "device": "cpu"} | options)


def test_mean_and_spread_over_seeds():
    rows = [
        Row(what="perplexity", unit="", value=v, spread=9.0, model="", method="", seed=s)
        for s, v in enumerate((1.0, 3.0))
    ]
    assert mean_and_spread(rows) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_spread(rows[:1]) == (1.0, 9.0)


def test_the_papers_plan_needs_no_statistics_of_all_layers_at_once(plan, dense_folder):
    """The same model comes out, layer by layer."""
    case = next(experiments.allocation(plan))
    models = []
    for keep in (True, False):
        laboratory = Laboratory(str(dense_folder), "cpu", dataclasses.replace(plan, keep_statistics=keep))
        models.append(laboratory.compressed(case)[0])
    for (name, first), second in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert first.shape == second.shape and (first - second).abs().max() < 1e-4, name
