"""`modegpt compress` as a user types it, on a tiny random model."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from modegpt.report import count_parameters

pytestmark = pytest.mark.usefixtures("one_thread")

CALIBRATION = {"samples": 16, "seq_len": 64}  # ten tokens a channel or more: no warning
EVALUATION = {"windows": 4, "seq_len": 48}


def options(values: dict) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_compress_writes_what_it_measured(run):
    result = run.result
    wanted = "requested_ratio block_ratio model_ratio parameters_before parameters_after ranks seconds tokens".split()
    wanted += "peak_memory_bytes versions seed device command dtype samples seq_len calibration method".split()
    assert set(wanted) <= set(result)
    assert result["requested_ratio"] == 0.3
    assert [set(layer) for layer in result["ranks"]] == [{"query_key", "value", "mlp"}] * 3
    assert set(result["seconds"]) == {"load", "calibrate", "decompose", "save", "total"}
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert sum(result["seconds"].values()) <= 2 * result["seconds"]["total"]
    assert result["peak_memory_bytes"] > 50e6  # torch alone
    assert result["tokens"] == CALIBRATION["samples"] * CALIBRATION["seq_len"]
    assert (result["seed"], result["dtype"], result["method"]) == (3, run.dtype, "modegpt")
    assert {"modegpt", "torch", "transformers", "python"} <= set(result["versions"])
    assert shlex.split(result["command"]) == ["modegpt", *run.words]


def test_compress_prints_what_it_wrote(run):
    result = run.result
    for number in (f"{result['block_ratio']:.1%}", "30.0% asked", f"{result['model_ratio']:.1%} of the whole model"):
        assert number in run.printed.out
    assert str(run.folder) in run.printed.out
    assert run.printed.err == ""


def test_numbers_agree_with_the_saved_model(run, dense_folder):
    result, dense = run.result, AutoModelForCausalLM.from_pretrained(dense_folder)
    small = AutoModelForCausalLM.from_pretrained(run.folder)
    assert result["parameters_before"] == count_parameters(dense)
    assert result["parameters_after"] == count_parameters(small)
    assert result["model_ratio"] == pytest.approx(1 - count_parameters(small) / count_parameters(dense))
    matrices = sum(p.numel() for name, p in dense.model.layers.named_parameters() if "norm" not in name)
    gone = count_parameters(dense) - count_parameters(small)
    assert result["block_ratio"] == pytest.approx(gone / matrices) == pytest.approx(0.3, abs=0.01)
    for name in ("query_key", "value", "mlp"):
        assert getattr(small.config, f"{name}_ranks") == [layer[name] for layer in result["ranks"]]


def test_saved_folder_holds_the_report_and_only_safetensors(run):
    names = {path.name for path in run.folder.iterdir()}
    weights = {name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".pkl"))}
    assert weights == {"model.safetensors"}
    report = json.loads((run.folder / "modegpt_report.json").read_text())
    assert report["ranks"] == run.result["ranks"]
    # the folder travels, so it names no place; the results file has the exact command
    assert report["command"].split() == [Path(word).name for word in run.result["command"].split()]
    assert sorted(path.name for path in run.folder.parent.iterdir()) == ["compress.json", "small"]


def test_saved_weights_shrink_with_the_parameters(run, dense_folder, tmp_path):
    dense = AutoModelForCausalLM.from_pretrained(dense_folder, dtype=getattr(torch, run.dtype))
    dense.save_pretrained(tmp_path)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run.folder, tmp_path)]
    assert sizes[0] / sizes[1] == pytest.approx(1 - run.result["model_ratio"], rel=0.03)
    with safe_open(run.folder / "model.safetensors", "pt") as file:
        dtypes = {file.get_tensor(name).dtype for name in file.keys() if "rotary_index" not in name}
    assert dtypes == {getattr(torch, run.dtype)}


def test_folder_named_like_markup_works(modegpt, dense_folder, text_file, tmp_path):
    small = tmp_path / "[/b]"
    settings = ["--calibration", text_file, *options(CALIBRATION)]
    done = modegpt("compress", dense_folder, "--ratio", 0.2, "--out", small, *settings)
    assert done.code == 0 and str(small) in done.out
    done = modegpt("evaluate", small, "--text", text_file, *options(EVALUATION))
    assert done.code == 0 and str(small) in done.err


def test_seed_draws_the_windows(modegpt, dense_folder, text_file, tmp_path):
    def weights(name, seed):
        arguments = ["compress", dense_folder, "--ratio", 0.3, "--out", tmp_path / name, "--seed", seed]
        assert modegpt(*arguments, "--calibration", text_file, *options(CALIBRATION)).code == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_overwrite_replaces_the_folder(modegpt, dense_folder, text_file, tmp_path):
    (tmp_path / "pytorch_model.bin").write_text("old")
    arguments = ["compress", dense_folder, "--ratio", 0.2, "--out", tmp_path, "--overwrite"]
    assert modegpt(*arguments, "--calibration", text_file, *options(CALIBRATION)).code == 0
    assert (tmp_path / "config.json").is_file() and not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("method", ["modegpt", "modegpt-plus"])
@pytest.mark.parametrize("destination", ["stock", "gguf"])
def test_for_a_destination_heads_stay_whole(modegpt, dense_folder, text_file, tmp_path, destination, method):
    words = ["--for", destination, "--method", method, "--multiple-of", 4, "--json", tmp_path / "small.json"]
    text = ["--calibration", text_file, *options(CALIBRATION)]
    done = modegpt("compress", dense_folder, "--ratio", 0.3, "--out", tmp_path / "small", *words, *text)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "small.json").read_text())
    assert result["block_ratio"] == pytest.approx(0.3, abs=0.02)
    assert {(layer["query_key"], layer["value"]) for layer in result["ranks"]} == {(16, 16)}
    widths = {layer["mlp"] for layer in result["ranks"]}
    assert (len(widths) == 1) == (destination == "stock") and not any(width % 4 for width in widths)
    assert result["settings"]["correct"] == (0.5 if method == "modegpt-plus" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stock", "--modules", "mlp"], "--for stock shrinks the MLPs and keeps heads whole: leave --modules out"),
        (["stock", "--allocation", "global"], "--for stock gives every layer the same width"),
        (["gguf", "--query-key", "shared"], "--for gguf keeps heads whole: leave --query-key out"),
        (["gguf", "--method", "svd"], "--for is an option of modegpt, not of svd"),
        (["gguf", "--ratio", 0.9], "mlp alone cannot bear this ratio"),
        (["nowhere"], "'nowhere' is not one of"),
    ],
)
def test_what_no_destination_can_hold_is_refused(modegpt, dense_folder, text_file, tmp_path, words, message):
    words = ["--ratio", 0.3, "--out", tmp_path / "small", "--for", *words]
    done = modegpt("compress", dense_folder, "--calibration", text_file, *options(CALIBRATION), *words)
    assert done.code != 0 and message in " ".join(done.err.split()) and not (tmp_path / "small").exists()


def test_an_option_that_the_model_does_not_take_is_refused_before_its_weights_are_read(
    modegpt, tiny_opt, tmp_path, text_file
):
    tiny_opt().save_pretrained(tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").write_text("no weights")
    words = ["--method", "modegpt-plus", "--query-key", "shared", "--calibration", text_file, "--seq-len", 64]
    done = modegpt("compress", tmp_path / "opt", "--ratio", 0.3, "--out", tmp_path / "small", *words)
    assert done.code == 2 and "a 'opt' has no query_key=shared" in done.err and done.err.count("\n") == 1


def test_few_calibration_tokens_warn(modegpt, dense_folder, text_file, tmp_path):
    arguments = ["compress", dense_folder, "--ratio", 0.2, "--out", tmp_path / "small", "--calibration", text_file]
    done = modegpt(*arguments, "--samples", 2, "--seq-len", 16)
    assert done.code == 0
    assert done.err.startswith("warning: 32 calibration tokens") and done.err.count("\n") == 1
