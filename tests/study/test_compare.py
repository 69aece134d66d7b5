import json
from dataclasses import replace
from pathlib import Path

import pytest

from modegpt.checkpoint.card import PAPERS
from modegpt.errors import ModegptError
from modegpt.methods import METHODS
from modegpt.study import compare
from modegpt.study.figures import perplexity_against_parameters
from modegpt.study.results import Results, Row, load

pytestmark = pytest.mark.usefixtures("one_thread")
LIMITS = ["--samples", "6", "--calibration-length", "64", "--windows", "2", "--seq-len", "64", "--device", "cpu"]


@pytest.fixture
def command(dense_folder, text_file, tmp_path):
    evaluation = tmp_path / "other.txt"
    evaluation.write_text(text_file.read_text()[:40_000])
    texts = ["--calibration", text_file, "--text", evaluation]
    return ["compare", dense_folder, *texts, *LIMITS, "--out", tmp_path / "all.json"]


def test_every_method_at_every_ratio_on_the_same_tokens(modegpt, command, tmp_path):
    done = modegpt(*command, "--ratios", "0.2,0.5")
    assert done.code == 0, done.err
    results = load(tmp_path / "all.json")
    rows = results.rows
    assert [(row.method, row.ratio) for row in rows] == [
        ("dense", 0.0),
        *((method, ratio) for method in METHODS for ratio in (0.2, 0.5)),
    ]
    assert len({row.details["tokens"] for row in rows}) == 1
    for row in rows[1:]:
        coarse = 0.17 if row.method == "shortgpt" else 0.06  # three layers; ranks in multiples of 8
        assert row.details["block_ratio"] == pytest.approx(row.ratio, abs=coarse), row.method
        assert row.value > 1
    assert results.command.startswith("modegpt compare") and results.versions["torch"]
    table = (tmp_path / "all.md").read_text()
    assert table.startswith(compare.table(results))
    for method in METHODS:
        assert f"| {method} |" in table
    assert (tmp_path / "all.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "all.md", "all.png", "other.txt"]


def test_an_interrupted_run_goes_on(modegpt, command, tmp_path, monkeypatch):
    """The third method breaks; what was done before it is not done again."""
    methods = "magnitude,shortgpt,svd"

    def broken(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "svd", replace(METHODS["svd"], measure=broken))
        assert modegpt(*command, "--ratios", "0.3", "--methods", methods).code != 0
    assert not (tmp_path / "all.json").exists()
    again = modegpt(*command, "--ratios", "0.3", "--methods", methods)
    assert again.code == 0, again.err
    assert "3 rows are done" in again.out
    assert "magnitude 30%: perplexity" not in again.out and "svd 30%: perplexity" in again.out
    assert len(load(tmp_path / "all.json").rows) == 4


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "modegpt,lora"], "unknown method 'lora'"),
        (["--methods", "svd,svd"], "named twice"),
        (["--ratios", "0.1,much"], "--ratios is a list"),
        (["--ratios", "0,0.3"], "leave 0 out"),
        (["--ratios", "1.5"], "ratio"),
        (["--ratios", "0.3,0.3"], "named twice"),
        (["--out", "table.txt"], "ends in .json"),
        (["--out", "none/table.json"], "folder that exists"),
    ],
)
def test_bad_options_are_refused_before_any_work(modegpt, command, options, message):
    done = modegpt(*command, *options)
    assert done.code != 0
    assert message in done.err and len(done.err.splitlines()) == 1


def test_one_text_for_both_is_refused(modegpt, command, text_file):
    done = modegpt(*command, "--text", text_file)
    assert done.code != 0 and "share the text" in done.err


def test_a_perplexity_that_overflowed_is_said_and_not_drawn():
    details = {"model_ratio": 0.0, "parameters": 5e6, "seconds": {"measure": 1.0, "compress": 1.0}, "tokens": 100}
    same = {"what": "perplexity", "unit": "", "model": "m", "data": "t", "details": details}
    rows = [
        Row(value=20.0, method="dense", ratio=0.0, **same),
        Row(value=None, method="svd", ratio=0.5, **same),
        Row(value=30.0, method="modegpt", ratio=0.5, **same),
    ]
    settings = {"model": "m", "text": "t", "seq_len": 8, "samples": 1, "calibration_length": 8}
    settings |= {"calibration": "c", "dtype": "float32"}
    results = Results.now("compare", "a test", settings, rows, "cpu", "command")
    assert "| svd | inf ± ? (0.0%) |" in compare.table(results)
    (legend,) = perplexity_against_parameters(results).legends
    assert [text.get_text() for text in legend.get_texts()] == ["MoDeGPT"]


def test_a_method_that_does_not_fit_leaves_the_others_their_turn(modegpt, command, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ModegptError("not for this model")

    monkeypatch.setitem(METHODS, "svd", replace(METHODS["svd"], measure=refuse))
    monkeypatch.setitem(METHODS, "shortgpt", replace(METHODS["shortgpt"], compress=refuse))
    done = modegpt(*command, "--ratios", "0.2,0.5", "--methods", "svd,shortgpt,magnitude")
    assert done.code == 0, done.err
    assert "svd 20% fails: not for this model" in done.err
    assert [row.method for row in load(tmp_path / "all.json").rows if row.error] == [
        "svd",
        "svd",
        "shortgpt",
        "shortgpt",
    ]
    table = (tmp_path / "all.md").read_text()
    assert "| svd | fails | fails |" in table and "shortgpt fails: not for this model." in table
    assert (tmp_path / "all.png").exists()


def test_options_of_modegpt_are_not_taken_for_other_methods(modegpt, dense_folder, tmp_path):
    command = ["compress", dense_folder, "--ratio", "0.3", "--out", tmp_path / "small"]
    done = modegpt(*command, "--method", "svd", "--epsilon", "0.1")
    assert done.code != 0
    assert "--epsilon is an option of modegpt, not of svd" in done.err


@pytest.mark.parametrize("method", [name for name in METHODS if name != "modegpt"])
def test_compress_takes_every_method(modegpt, dense_folder, text_file, tmp_path, method):
    folder = tmp_path / "small"
    limits = ["--samples", "6", "--seq-len", "64"]
    texts = ["--calibration", text_file]
    done = modegpt("compress", dense_folder, "--ratio", "0.3", "--out", folder, "--method", method, *limits, *texts)
    assert done.code == 0, done.err
    assert json.loads((folder / "modegpt_report.json").read_text())["method"] == method
    card = (folder / "README.md").read_text()
    assert f"compressed with {PAPERS[method]}" in card
    assert ("No calibration text" in card) == (not METHODS[method].calibrated)
    assert ("trust_remote_code" in card) == ("auto_map" in json.loads((folder / "config.json").read_text()))
    assert modegpt("evaluate", folder, "--text", text_file, "--windows", "1", "--seq-len", "64").code == 0
    assert modegpt("generate", folder, "some text", "--max-new-tokens", "4").code == 0


def test_a_method_of_the_users_is_drawn_too():
    results = load(Path(__file__).resolve().parents[2] / "figures/results/opt-mini.methods.json")
    own = [replace(row, method="my-method") for row in results.find(method="modegpt")]
    figure = perplexity_against_parameters(replace(results, rows=[*results.rows, *own]))
    (line,) = [line for line in figure.axes[0].lines if line.get_label().startswith("my-method")]
    assert set(line.get_ydata()) >= {row.value for row in own}


@pytest.mark.parametrize("name", ["smollm2-135m.methods.wikitext2.h100", "smollm2-135m.methods", "opt-mini.methods"])
def test_the_committed_table_is_the_results_file(name):
    file = Path(__file__).resolve().parents[2] / f"figures/results/{name}.json"
    assert compare.table(load(file)) == file.with_suffix(".md").read_text()
