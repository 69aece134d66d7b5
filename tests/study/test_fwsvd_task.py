import json
import random

import pytest
import torch

from modegpt.cli.study import fwsvd_task
from modegpt.errors import ModegptError
from modegpt.methods.fwsvd import fisher_rows, fisher_weighted_factors
from modegpt.methods.low_rank import ordered_factors
from modegpt.study import fwsvd_task as kit
from modegpt.study.figures import accuracy_on_tasks
from modegpt.study.results import Results, Row, load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tasks(text_file, tmp_path_factory):
    """Two tasks: the label says which of two words stands among others."""
    words, draw = text_file.read_text().lower().replace(".", "").split()[:200], random.Random(0)
    files = []
    for name, marks in (("first", ("aaaa", "nnnn")), ("second", ("eeee", "llll"))):
        lines = []
        for index in range(80):
            marked = [*draw.choices(words, k=4), marks[index % 2]]
            draw.shuffle(marked)
            lines.append(json.dumps({"text": " ".join(marked), "label": index % 2}) + "\n")
        files.append(tmp_path_factory.mktemp("tasks") / f"{name}.jsonl")
        files[-1].write_text("".join(lines))
    return ",".join(map(str, files))


@pytest.fixture
def unit(dense_folder, tasks):
    plan = kit.Plan(shares=(0.2, 0.33), controls=(0.33,), epochs=1, samples=8, length=64)
    mine, other = (kit.Unit(str(dense_folder), task, 0, torch.device("cpu"), plan) for task in tasks.split(","))
    mine.other = other
    return mine


def test_every_linear_of_the_blocks_is_factorised_and_full_rank_changes_nothing(unit):
    model = unit.classifier()
    for rows in (None, unit.fisher(model, unit.train[:6])):
        factors = kit.factors_of(model, rows)
        assert len(factors) == 3 * 7
        for name, (left, right) in factors.items():
            weight = model.get_submodule(name).weight
            torch.testing.assert_close((left @ right).float(), weight.detach(), rtol=1e-4, atol=1e-5)


def test_the_factors_are_those_of_the_method(unit):
    """By a singular value decomposition, and with gradients taken one sample at a time."""
    model = unit.classifier()
    few = unit.train[:6]
    alone = kit.classify.batches(few, unit.tokenizer, 1, unit.device)
    rows = fisher_rows(model, kit.block_linears(model), alone)
    found = {"svd": kit.factors_of(model, None), "fwsvd": kit.factors_of(model, unit.fisher(model, few))}
    for name, linear in kit.block_linears(model).items():
        weight = linear.weight.detach()
        wanted = {"svd": ordered_factors(weight, weight.double())}
        wanted["fwsvd"] = fisher_weighted_factors(weight, rows[name])
        for method, (left, right) in wanted.items():
            rank = kit.rank_for_share(0.33, *weight.shape)
            mine, rest = found[method][name]
            product = mine[:, :rank] @ rest[:rank]
            torch.testing.assert_close(product, left[:, :rank] @ right[:rank], rtol=1e-4, atol=1e-5)


def test_the_controls_are_other_weights(unit):
    dense, own = unit.fitted
    names = []
    for name, rows in kit.controls(unit, dense):
        names.append(name)
        assert all(not torch.allclose(rows[part], own[part], rtol=1e-3, atol=0) for part in rows)
    assert names == ["shuffled labels", "another task", "16 examples"]


def test_fewer_layers_make_no_smaller_a_model(unit):
    rows = {(row.method, row.details["again"]): row for row in [*kit.ranks(unit), *kit.direct(unit)]
            if "weights of" not in row.variant and row.details["share"] in (1.0, 0.33)}  # fmt: skip
    sizes = {method: row.details["parameters"] for (method, _), row in rows.items()}
    assert sizes["svd"] == sizes["fwsvd"] <= sizes["fewer layers"] < sizes["dense"]
    assert sizes["modegpt"] == pytest.approx(sizes["fwsvd"], rel=0.05)
    assert rows["svd", False].details["weight_error"] < rows["fwsvd", False].details["weight_error"] < 1
    assert all((method, True) in rows for method in sizes)


def test_a_compact_model_is_made_as_much_smaller_as_asked(unit, monkeypatch):
    monkeypatch.setattr(kit, "load_text", lambda *_: "one two three four five six seven eight nine ten " * 2000)
    sizes = {}
    for row in kit.compact(unit):
        sizes[row.method, row.details["removed"]] = row.details["parameters"]
    whole = sizes["dense", 0.0]
    for (_, removed), size in sizes.items():
        assert 1 - size / whole == pytest.approx(removed, abs=0.03)
    assert {removed for _, removed in sizes} == {0.0, 0.09, 0.18, 0.3}


def test_summary_is_the_mean_and_spread_over_seeds():
    def row(value, seed, again):
        details = {"share": 0.3, "again": again, "parameters": 5}
        variant = "30% of the ranks" + ", fine-tuned again" * again
        about = {"model": "m", "data": "t", "method": "svd", "variant": variant, "seed": seed, "details": details}
        return Row(what="accuracy", unit="share", value=value, **about)

    rows = [row(before, seed, False) for seed, before in enumerate((0.5, 0.6, 0.7))]
    rows += [row(0.9, seed, True) for seed in range(3)]
    (line,) = kit.summary(Results.now("fwsvd", "a test", {}, rows, "cpu", "command"))
    assert line["before"] == {"mean": pytest.approx(0.6), "spread": pytest.approx(0.1), "seeds": 3}
    assert line["after"]["mean"] == pytest.approx(0.9) and line["after"]["spread"] == pytest.approx(0)


def run(folder, tasks, out, **changes):
    options = {"parts": "direct", "seeds": "0,1", "shares": "0.33,0.4", "again": "0.33", "train": 48, "test": 30}
    options |= {"epochs": 1, "learning_rate": 1e-3, "device": "cpu"} | changes
    fwsvd_task(models=str(folder), tasks=tasks, folder=out, **options)


def test_processes_that_share_the_work_give_what_one_gives(dense_folder, tasks, tmp_path, monkeypatch):
    run(dense_folder, tasks, tmp_path / "one")
    run(dense_folder, tasks, tmp_path / "many", seeds="1")
    broken = kit.classify.accuracy
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:  # in the second unit
            raise KeyboardInterrupt
        return broken(*args)

    with monkeypatch.context() as patch:
        patch.setattr(kit.classify, "accuracy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(dense_folder, tasks, tmp_path / "many")
    run(dense_folder, tasks, tmp_path / "many")
    one, many = (load(tmp_path / folder / "results" / "fwsvd.direct.json") for folder in ("one", "many"))
    assert one.rows == many.rows and one.settings == many.settings
    assert len(many.rows) == 2 * 2 * 2  # tasks, seeds, before and after
    about = many.settings["dense"]["first"]
    assert about["majority"] == pytest.approx(0.5, abs=0.15) and about["train"] <= 48


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shares": "0.2,half"}, "--shares is a list such as"),
        ({"again": "0.2"}, "must be among"),
        ({"shares": "0.9", "again": "0.9", "parts": "ranks"}, "saves nothing: break-even is at rank"),
        ({"tasks": "sst9,rte"}, "unknown task"),
        ({"tasks": "rte"}, "name two or more"),
        ({"parts": "rank"}, "unknown part 'rank'"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_bad_options_are_one_clear_line(dense_folder, tasks, tmp_path, changes, message):
    named = changes.pop("tasks", tasks)
    with pytest.raises(ModegptError, match=message):
        run(dense_folder, named, tmp_path, **changes)


def test_the_picture_has_a_panel_for_each_model_and_task_and_leaves_out_the_controls():
    score = {"mean": 0.5, "spread": 0.01, "seeds": 5}
    lines = []
    for model, task in (("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")):
        about = {"model": model, "data": task, "parameters": 5e6, "before": score}
        lines += [
            about | {"method": name, "variant": "33% of the ranks"} for name in ("dense", "svd", "fwsvd", "modegpt")
        ]
        lines.append(
            about | {"method": "fwsvd", "variant": "weights of 16 examples, 33% of the ranks", "parameters": 1e6}
        )
    figure = accuracy_on_tasks(lines)
    assert [axes.get_title("left") for axes in figure.axes] == ["a, x", "a, y", "b, x", "b, y"]
    drawn = [x for axes in figure.axes for line in axes.lines if line.get_marker() != "None" for x in line.get_xdata()]
    assert 5 in drawn and 1 not in drawn
