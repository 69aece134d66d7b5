"""`modegpt evaluate` as a user types it, on a tiny random model."""

import math

import pytest

from modegpt.evaluate import perplexity
from modegpt.pipeline import compress
from modegpt.sources import load_model, load_text, token_windows

pytestmark = pytest.mark.usefixtures("one_thread")

CALIBRATION = {"samples": 16, "seq_len": 64}  # ten tokens a channel or more: no warning
EVALUATION = {"windows": 4, "seq_len": 48}


def options(values: dict) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_evaluate_writes_what_it_prints(strict_json, modegpt, run, evaluation_file, tmp_path):
    file = tmp_path / "evaluate.json"
    arguments = ["evaluate", run.folder, "--text", evaluation_file, "--json", file, *options(EVALUATION)]
    printed = modegpt(*arguments, "--dtype", run.dtype)
    result = strict_json(file)
    assert printed.code == 0 and printed.err == ""
    assert f"perplexity {result['perplexity']:.3f} ± {result['standard_error']:.3f}" in printed.out
    assert (result["windows"], result["seq_len"], result["tokens"]) == (4, 48, 4 * 47)
    assert (result["text"], result["bos"], result["dtype"]) == (str(evaluation_file), False, run.dtype)
    assert result["parameters"] == run.result["parameters_after"]
    assert {"standard_error", "seed", "device", "versions", "command", "peak_memory_bytes"} <= set(result)
    assert set(result["seconds"]) == {"load", "evaluate"}


def test_evaluated_perplexity_equals_that_of_the_model_in_memory(
    strict_json, modegpt, run, dense_folder, text_file, evaluation_file, tmp_path
):
    dense, tokenizer = load_model(str(dense_folder), dtype=run.dtype)
    calibration = token_windows(text_file.read_text(), tokenizer, *CALIBRATION.values(), seed=3)
    evaluation = token_windows(evaluation_file.read_text(), tokenizer, *EVALUATION.values())
    before = perplexity(dense, evaluation).perplexity
    small, _ = compress(dense, calibration, ratio=0.3, multiple_of=2)
    expected = perplexity(small, evaluation).perplexity
    assert abs(before - expected) > 1e-2 * before  # the case can tell them apart

    file = tmp_path / "evaluate.json"
    arguments = ["evaluate", run.folder, "--text", evaluation_file, "--json", file, *options(EVALUATION)]
    assert modegpt(*arguments, "--dtype", run.dtype).code == 0
    assert strict_json(file)["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_windows_beyond_the_positions_are_warned_of_once(modegpt, run, evaluation_file):
    printed = modegpt("evaluate", run.folder, "--text", evaluation_file, "--windows", 1, "--seq-len", 300)
    assert (printed.code, printed.err.count("300 tokens, and this model was made for 256 positions")) == (0, 1)


@pytest.mark.parametrize("run", ["float32"], indirect=True)
def test_new_process_loads_the_folder_and_prints_nothing_but_the_result(
    finish, modegpt, start_modegpt, run, evaluation_file
):
    arguments = ["evaluate", run.folder, "--text", evaluation_file, *options(EVALUATION), "--dtype", "float32"]
    here, there = modegpt(*arguments), finish(start_modegpt(*arguments))
    assert (there.code, there.err) == (0, "")
    assert there.out.split(";")[0] == here.out.split(";")[0]  # seconds come later


@pytest.mark.parametrize("elsewhere", [False, True])
def test_evaluation_on_the_calibration_text_warns(
    modegpt, dense_folder, text_file, evaluation_file, tmp_path, monkeypatch, elsewhere
):
    """Trap 40; also when the file was named relative to another folder."""
    monkeypatch.chdir(text_file.parent)
    arguments = ["compress", dense_folder, "--ratio", 0.2, "--out", tmp_path / "small", *options(CALIBRATION)]
    assert modegpt(*arguments, "--calibration", text_file.name).code == 0
    if elsewhere:
        monkeypatch.chdir(tmp_path)
    done = modegpt("evaluate", tmp_path / "small", "--text", text_file, *options(EVALUATION))
    assert done.code == 0 and "calibrated on this text" in done.err and done.err.count("\n") == 1
    done = modegpt("evaluate", tmp_path / "small", "--text", evaluation_file, *options(EVALUATION))
    assert done.code == 0 and done.err == ""


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"calibration": "wikitext2:no-such-split"}'])
def test_odd_report_in_the_folder_does_not_stop_the_evaluation(modegpt, run, text_file, tmp_path, report):
    copy = tmp_path / "small"
    copy.mkdir()
    for path in run.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "modegpt_report.json").write_text(report)
    done = modegpt("evaluate", copy, "--text", text_file, *options(EVALUATION))
    assert done.code == 0 and done.err == ""


def test_one_window_gives_null_as_standard_error(strict_json, modegpt, dense_folder, text_file, tmp_path):
    done = modegpt(
        "evaluate", dense_folder, "--text", text_file, "--windows", 1, "--seq-len", 48, "--json", tmp_path / "e.json"
    )
    assert done.code == 0 and done.err == "" and "nan" not in done.out
    result = strict_json(tmp_path / "e.json")
    assert result["standard_error"] is None and math.isfinite(result["perplexity"])


def test_windows_0_takes_the_whole_text(strict_json, modegpt, dense_folder, text_file, tiny_tokenizer, tmp_path):
    arguments = ["evaluate", dense_folder, "--text", text_file, "--windows", 0, "--seq-len", 512, "--batch-size", 8]
    assert modegpt(*arguments, "--json", tmp_path / "e.json").code == 0
    tokens = len(tiny_tokenizer(text_file.read_text())["input_ids"])
    assert strict_json(tmp_path / "e.json")["windows"] == tokens // 512


def test_wiki_passages_are_the_default_text(strict_json, modegpt, run, tmp_path):
    """Calibration and evaluation share none of it, so nothing warns."""
    done = modegpt("evaluate", run.folder, *options(EVALUATION), "--json", tmp_path / "e.json")
    assert done.code == 0 and done.err == ""
    assert strict_json(tmp_path / "e.json")["text"] == "wiki-passages"
    assert load_text("wiki-passages", "evaluation") != load_text("wiki-passages", "calibration")
