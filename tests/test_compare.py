import dataclasses
import json
from pathlib import Path

import pytest

from modegpt import compare
from modegpt.baselines import METHODS
from modegpt.card import PAPERS
from modegpt.cli import Method
from modegpt.errors import ModegptError
from modegpt.figures import perplexity_against_parameters
from modegpt.figures.results import METHOD_STYLES

pytestmark = pytest.mark.usefixtures("one_thread")
LIMITS = ["--samples", "6", "--calibration-length", "64", "--windows", "2", "--seq-len", "64", "--device", "cpu"]


@pytest.fixture
def command(dense_folder, text_file, tmp_path):
    evaluation = tmp_path / "other.txt"
    evaluation.write_text(text_file.read_text()[:40_000])
    texts = ["--calibration", text_file, "--text", evaluation]
    return ["compare", dense_folder, *texts, *LIMITS, "--out", tmp_path / "all.json"]


def test_the_command_line_knows_every_method():
    assert [method.value for method in Method] == list(METHODS)


def test_every_method_at_every_ratio_on_the_same_tokens(modegpt, command, tmp_path):
    done = modegpt(*command, "--ratios", "0.2,0.5")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "all.json").read_text())
    rows = results["rows"]
    assert [(row["method"], row["requested_ratio"]) for row in rows] == [
        ("dense", 0.0),
        *((method, ratio) for method in METHODS for ratio in (0.2, 0.5)),
    ]
    assert len({row["tokens"] for row in rows}) == 1
    for row in rows[1:]:
        coarse = 0.17 if row["method"] == "shortgpt" else 0.06  # three layers; ranks in multiples of 8
        assert row["block_ratio"] == pytest.approx(row["requested_ratio"], abs=coarse), row["method"]
        assert row["perplexity"] > 1
    assert results["command"].startswith("modegpt compare") and results["versions"]["torch"]
    table = (tmp_path / "all.md").read_text()
    assert table == compare.table(results)
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
        patch.setitem(METHODS, "svd", dataclasses.replace(METHODS["svd"], measure=broken))
        assert modegpt(*command, "--ratios", "0.3", "--methods", methods).code != 0
    assert not (tmp_path / "all.json").exists()
    again = modegpt(*command, "--ratios", "0.3", "--methods", methods)
    assert again.code == 0, again.err
    assert "3 rows are done" in again.out
    assert "magnitude 30%: perplexity" not in again.out and "svd 30%: perplexity" in again.out
    assert len(json.loads((tmp_path / "all.json").read_text())["rows"]) == 4


def test_other_settings_start_anew(tmp_path):
    file = tmp_path / "partial.json"
    file.write_text(json.dumps({"seed": 0, "rows": [{"method": "dense"}]}))
    assert compare.rows_so_far(file, {"seed": 0}) == [{"method": "dense"}]
    assert compare.rows_so_far(file, {"seed": 1}) == []
    file.write_text("cut sho")
    assert compare.rows_so_far(file, {"seed": 0}) == []
    assert compare.rows_so_far(tmp_path / "none", {}) == []


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
    row = {"requested_ratio": 0.0, "model_ratio": 0.0, "parameters": 5e6, "perplexity": 20.0, "standard_error": None}
    row |= {"seconds": {"measure": 1.0, "compress": 1.0}, "tokens": 100}
    half = row | {"requested_ratio": 0.5}
    rows = [row | {"method": "dense"}, half | {"method": "svd", "perplexity": None}, half | {"method": "modegpt"}]
    results = {"rows": rows, "model": "m", "text": "t", "seq_len": 8, "samples": 1, "calibration_length": 8}
    results |= {"calibration": "c", "dtype": "float32", "device": "cpu", "date": "2026-01-01"}
    results |= {"versions": {"torch": "2", "transformers": "5"}}
    assert "| svd | inf ± ? (0.0%) |" in compare.table(results)
    (legend,) = perplexity_against_parameters(results).legends
    assert [text.get_text() for text in legend.get_texts()] == ["MoDeGPT"]


def test_a_method_that_does_not_fit_leaves_the_others_their_turn(modegpt, command, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ModegptError("not for this model")

    monkeypatch.setitem(METHODS, "svd", dataclasses.replace(METHODS["svd"], measure=refuse))
    monkeypatch.setitem(METHODS, "shortgpt", dataclasses.replace(METHODS["shortgpt"], compress=refuse))
    done = modegpt(*command, "--ratios", "0.2,0.5", "--methods", "svd,shortgpt,magnitude")
    assert done.code == 0, done.err
    assert "svd 20% fails: not for this model" in done.err
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert [row["method"] for row in rows if "error" in row] == ["svd", "svd", "shortgpt", "shortgpt"]
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


def test_the_table_in_the_readme_is_the_results_file():
    root = Path(__file__).resolve().parents[1]
    results = json.loads((root / "figures/results/smollm2-135m.methods.wikitext2.h100.json").read_text())
    readme = (root / "README.md").read_text()
    for method, (_, _, label) in METHOD_STYLES.items():
        if method == "fwsvd-shifted":  # of an earlier version, which squared batches: the readme says so
            continue
        rows = sorted((row for row in results["rows"] if row["method"] == method), key=lambda r: r["requested_ratio"])
        values = [row["perplexity"] for row in rows]
        cells = [f"{v:.2f}" if v < 1000 else f"{v:,.0f}" if v < 1e6 else f"{v:.0e}".replace("e+0", "e") for v in values]
        assert f"| {label} | {' | '.join(cells)} |" in readme
    for name in ("smollm2-135m.methods.wikitext2.h100", "smollm2-135m.methods", "opt-mini.methods"):
        results = json.loads((root / f"figures/results/{name}.json").read_text())
        assert compare.table(results) == (root / f"figures/results/{name}.md").read_text()
        for row in results["rows"]:
            if row["method"].startswith("fwsvd") and "h100" not in name:
                assert f"{row['perplexity']:{',.0f' if row['perplexity'] >= 1000 else '.2f'}}" in readme
