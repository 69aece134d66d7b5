import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modegpt.cli.study import fwsvd_task
from modegpt.errors import ModegptError
from modegpt.methods.fwsvd import fisher_rows, fisher_weighted_factors
from modegpt.methods.low_rank import ordered_factors, rank_for_share
from modegpt.study import fwsvd_task as kit
from modegpt.study import fwsvd_vary
from modegpt.study.figures import accuracy_on_tasks
from modegpt.study.results import Results, Row, load, write

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
            rank = rank_for_share(0.33, *weight.shape)
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


def test_one_choice_at_a_time_is_varied(unit):
    unit.plan = replace(unit.plan, shares=(0.33, 0.9), again=(0.33,))
    rows = {(row.method, row.variant): row for row in kit.vary(unit)}
    names = {variant.removesuffix(", 33% of the ranks") for method, variant in rows if method == "fwsvd"}
    assert names - {"33% of the ranks", "90% of the ranks", "33% of the ranks, fine-tuned again"} == {
        *fwsvd_vary.LAYERS,
        *(f"first fine-tuning: {name}" for name in fwsvd_vary.FIRST_TRAININGS),
        *(f"weights damped by {damping}" for damping in ("0.01", "0.1", "1")),
        *(f"weights of {what}" for what in ("shuffled labels", "labels drawn from the model", "batches squared")),
        "weights of the inputs alone",
    }
    whole = rows["dense", "whole"].details["parameters"]
    for method in ("svd", "fwsvd"):
        about = {
            name: rows[method, name + "33% of the ranks"].details for name in ("", "attention only, ", "MLP only, ")
        }
        parts = [about.pop("")["weight_error"], *(part["weight_error"] for part in about.values())]
        assert parts[0] ** 2 == pytest.approx(parts[1] ** 2 + parts[2] ** 2)
        assert rows[method, "90% of the ranks"].details["weight_error"] < parts[0]
        assert rows[method, "90% of the ranks"].details["parameters"] > whole  # it saves nothing, and is measured
        inner = rows[method, "without the first and the last layer, 33% of the ranks"].details
        assert whole - inner["parameters"] == (whole - rows[method, "33% of the ranks"].details["parameters"]) / 3
    assert rows["svd", "33% of the ranks"].details["weight_error"] == min(
        row.details["weight_error"] for (_, name), row in rows.items()
        if name in ("33% of the ranks", "whitened by the inputs, 33% of the ranks") or name.startswith("weights")
    )  # fmt: skip
    assert all(
        row.details["weight_error"] > 0 for row in rows.values() if row.method != "dense" and not row.details["again"]
    )


def test_input_grams_are_those_of_texts_alone(unit):
    """Padding is no token."""
    model, unit.train = unit.classifier().double(), unit.train[:5]
    name, linear = list(kit.block_linears(model).items())[-1]
    seen = []
    with linear.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()[0])):
        for inputs in kit.classify.batches(unit.train, unit.tokenizer, 1, unit.device):
            model(**inputs)
    x = torch.cat(seen)
    assert len({len(text) for text in seen}) > 1
    found = fwsvd_vary.input_grams(unit, model)
    torch.testing.assert_close(found[name], x.mT @ x / len(x))


def test_labels_drawn_from_the_model_are_as_likely_as_it_says(unit):
    model = unit.classifier()
    with torch.no_grad():
        model.score.weight.zero_()
    even = [label for _, label in fwsvd_vary.drawn(unit, model)]
    assert 0.25 < sum(even) / len(even) < 0.75
    model.score.weight.requires_grad_(False).copy_(torch.randn_like(model.score.weight) * 1e3)
    sure = fwsvd_vary.drawn(unit, model)
    assert sorted(text for text, _ in sure) == sorted(text for text, _ in unit.train)
    unit.test = sure
    assert kit.classify.accuracy(model, sure, unit.tokenizer) == 1.0


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
    assert without_seconds(one) == without_seconds(many) and one.settings == many.settings
    assert len(many.rows) == 2 * 2 * 2  # tasks, seeds, before and after
    about = many.settings["dense"]["first"]
    assert about["majority"] == pytest.approx(0.5, abs=0.15) and about["train"] <= 48


def without_seconds(results):
    return [replace(row, details={**row.details, "seconds": None}) for row in results.rows]


def test_rows_of_a_results_file_are_not_measured_again(dense_folder, tasks, tmp_path):
    run(dense_folder, tasks, tmp_path / "one", seeds="0")
    known = tmp_path / "known"
    first = load(tmp_path / "one" / "results" / "fwsvd.direct.json")
    marked = [replace(row, value=0.125) for row in first.rows]
    write(replace(first, rows=marked), known / "fwsvd.direct.h200.json")
    run(dense_folder, tasks, tmp_path / "two", known=known)
    rows = load(tmp_path / "two" / "results" / "fwsvd.direct.json").rows
    assert [row for row in rows if row.seed == 0] == marked
    assert {row.seed for row in rows if row.value != 0.125} == {1}
    marked = [replace(row, model="b", value=0.25) for row in marked]
    write(replace(first, rows=marked, settings={"b": first.settings["dense"]}), known / "fwsvd.direct.h100.json")
    run(dense_folder, tasks, tmp_path / "three", known=known, epochs=2)  # another protocol
    third = load(tmp_path / "three" / "results" / "fwsvd.direct.json")
    assert 0.125 not in {row.value for row in third.rows}
    assert [row for row in third.rows if row.model == "b"] == marked and third.settings["b"] == first.settings["dense"]
    with pytest.raises(ModegptError, match="was measured with other settings"):
        run(dense_folder, tasks, tmp_path / "three")


def test_a_unit_that_another_process_measures_is_left_to_it(dense_folder, tasks, tmp_path):
    run(dense_folder, tasks, tmp_path, seeds="0")
    file, *_ = sorted((tmp_path / "units").glob("*.json"))
    before = file.read_bytes()
    file.unlink()
    with kit.FileLock(file.with_suffix(".lock")):
        run(dense_folder, tasks, tmp_path, seeds="0")
    assert not file.exists()
    run(dense_folder, tasks, tmp_path, seeds="0")
    assert [row["value"] for row in json.loads(file.read_bytes())["rows"]] == [
        row["value"] for row in json.loads(before)["rows"]
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"known": Path("nowhere")}, "no results of this study are there"),
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
    figure.canvas.draw()
    for axes in figure.axes:  # the words at the level of the whole model stay below the title
        assert axes.texts[0].get_window_extent().y1 < axes.bbox.y1
