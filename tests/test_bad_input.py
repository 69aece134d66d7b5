"""Whatever is wrong: one clear line on stderr, a non-zero exit, nothing half-written, and the next run works."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder under `folder`, hidden ones too."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.fixture
def refuses(modegpt, tmp_path, monkeypatch):
    """Runs a command in a fresh folder; it must say `words` in one line, fail, and change nothing there."""
    monkeypatch.chdir(tmp_path)

    def check(arguments, *words, code=2):
        before = contents(tmp_path)
        done = modegpt(*arguments, "--json", "results.json")
        assert done.code == code
        assert done.err.startswith("modegpt: ") and done.err.endswith("\n") and done.err.count("\n") == 1, done.err
        assert not [word for word in words if word not in done.err], done.err
        assert contents(tmp_path) == before
        return done

    return check


@pytest.fixture
def compress(dense_folder, text_file):
    """The words of a command that would work."""

    def words(*extra, model=dense_folder, ratio=0.3, samples=8):
        options = ["--out", "small", "--calibration", text_file, "--samples", samples, "--seq-len", 64]
        return ["compress", model, "--ratio", ratio, *options, *extra]

    return words


@pytest.fixture
def evaluate(dense_folder, text_file):
    def words(*extra, model=dense_folder):
        return ["evaluate", model, "--text", text_file, "--windows", 2, "--seq-len", 64, *extra]

    return words


@pytest.fixture
def model_copy(dense_folder, tmp_path):
    """The tiny model, to be damaged."""
    return shutil.copytree(dense_folder, tmp_path / "model")


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_the_commands_that_are_spoilt_below_work(modegpt, compress, evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert modegpt(*compress()).code == 0
    assert modegpt(*evaluate(model="small")).code == 0


@pytest.mark.parametrize("ratio", ["-0.1", "1", "1.5", "nan", "inf", "abc", ""])
def test_ratio(refuses, compress, ratio):
    assert refuses(compress(ratio=ratio), "ratio").out == ""  # before any work


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--samples", 0, "samples"),
        ("--samples", "many", "samples"),
        ("--seq-len", 1, "seq-len"),
        ("--multiple-of", 0, "multiple-of"),
        ("--batch-size", 0, "batch-size"),
        ("--batch-size", -2, "batch-size"),
        ("--seed", -1, "seed"),
        ("--seed", 10**30, "seed"),
        ("--epsilon", 0, "epsilon"),
        ("--epsilon", -1, "epsilon"),
        ("--epsilon", "nan", "epsilon"),
        ("--ridge", 0, "ridge"),
        ("--ridge", -1, "ridge"),
        ("--ridge", "nan", "ridge"),
        ("--ridge", "inf", "ridge"),
        ("--allocation", "fair", "allocation"),
        ("--inputs", "both", "inputs"),
        ("--pair-score", "max", "pair-score"),
        ("--method", "magic", "method"),
        ("--device", "quantum", "unknown device 'quantum'"),
        ("--device", "meta", "unsupported device 'meta'"),
        ("--dtype", "float8", "unknown dtype 'float8'"),
        ("--calibration", "novels", "unknown text 'novels'"),
        ("--calibration", "novels.txt", "novels.txt"),
        ("--colour", "red", "--colour"),
    ],
)
def test_option_of_compress(refuses, compress, option, value, word):
    refuses(compress(option, value), word)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--windows", -1, "windows"),
        ("--windows", 10**6, "windows"),
        ("--seq-len", 1, "seq-len"),
        ("--batch-size", 0, "batch-size"),
        ("--text", "novels", "unknown text 'novels'"),
        ("--text", "novels.jsonl", "novels.jsonl"),
        ("--device", "cuda:99", "no device 'cuda:99'"),
        ("--dtype", "int8", "unknown dtype 'int8'"),
    ],
)
def test_option_of_evaluate(refuses, evaluate, option, value, word):
    refuses(evaluate(option, value), word)


@pytest.mark.parametrize("file", ["nowhere/results.json", ".", "/"])
def test_results_file_is_checked_before_the_work(modegpt, compress, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    done = modegpt(*compress("--json", file))
    assert (done.code, done.out) == (2, "")
    assert done.err == f"modegpt: --json {file}: give a file in a folder that exists\n"
    assert contents(tmp_path) == {}


def test_cuda_without_a_gpu(refuses, compress, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    refuses(compress("--device", "cuda"), "no device 'cuda'", "use cpu or auto")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["squash", "model"], "squash"),
        (["compress"], "MODEL"),
        (["compress", "model", "--out", "small"], "--ratio"),
        (["compress", "model", "--ratio", "0.3"], "--out"),
        (["compress", "model", "--ratio"], "--ratio"),
        (["compress", "model", "another", "--ratio", "0.3", "--out", "small"], "another"),
        (["evaluate"], "MODEL"),
        (["generate", "model"], "PROMPT"),
    ],
)
def test_incomplete_or_wrong_command(refuses, arguments, word):
    refuses(arguments, word)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["", "--cache"], "prompt is empty"), (["a", "--max-new-tokens", 0], "max-new-tokens")],
)
def test_generate(refuses, dense_folder, words, said):
    refuses(["generate", dense_folder, *words], said)


def test_what_is_said_stays_one_line_whatever_the_user_typed(refuses):
    refuses(["generate", "no\nsuch\nmodel", "a"], "no such model")


def test_model_without_tokenizer(refuses, compress, evaluate, model_copy):
    (model_copy / "tokenizer.json").unlink()
    for arguments in (["generate", "model", "a"], compress(model="model"), evaluate(model="model")):
        refuses(arguments, "no tokenizer files")


def test_ratio_that_no_allocation_reaches(refuses, compress):
    refuses(compress(ratio=0.95), "0.95", "0.9")
    refuses(compress("--allocation", "uniform", ratio=0.99), "budget")


def cut(folder: Path, share: float) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])


DAMAGES = {
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(os.urandom(4096)), "corrupt"),
    "truncated": (lambda f: cut(f, 0.7), "corrupt or cut short"),
    "cut in the header": (lambda f: cut(f, 0.001), "corrupt or cut short"),
    "empty": (lambda f: cut(f, 0), "corrupt or cut short"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights"),
    "a tensor is gone": (lambda f: edit_weights(f, lambda w: w.pop("model.norm.weight")), "model.norm.weight"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": '), "JSON"),
    "unknown architecture": (lambda f: edit_config(f, model_type="mystery"), "language model"),
    "other sizes": (lambda f: edit_config(f, intermediate_size=96), "config.json"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_model(refuses, compress, model_copy, name):
    damage, word = DAMAGES[name]
    damage(model_copy)
    refuses(compress(model="model"), word)


def spoil(value, name):
    def change(weights):
        weights[name][0] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["mlp.down_proj", "self_attn.k_proj", "post_attention_layernorm"])
def test_non_finite_weights_name_the_layer(refuses, compress, model_copy, value, part):
    edit_weights(model_copy, spoil(value, f"model.layers.1.{part}.weight"))
    refuses(compress(model="model"), "layer 1", "weights", "NaN or inf")


def test_overflowing_activations_name_the_layer(refuses, compress, model_copy):
    def change(weights):
        for part in ("gate", "up"):
            weights[f"model.layers.2.mlp.{part}_proj.weight"] *= 1e30  # finite, their product is not

    edit_weights(model_copy, change)
    refuses(compress("--dtype", "float32", model="model"), "layer 2", "activations", "NaN or inf")


def test_non_finite_loss(refuses, evaluate, model_copy):
    edit_weights(model_copy, spoil(float("nan"), "lm_head.weight"))
    refuses(evaluate(model="model"), "window 0", "not finite")


def test_family_that_is_not_supported_is_named(refuses, compress, tiny_tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GPTNeoXConfig(vocab_size=300, bos_token_id=1, eos_token_id=1, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    refuses(compress(model="model"), "gpt_neox", "Llama", "GPT-2")


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "streamed"])
def test_a_missing_tokenizer_does_not_hide_a_family_that_is_not_supported(refuses, compress, stream):
    GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    ).save_pretrained("model")
    refuses(compress(*stream, model="model"), "gpt_neox", "not supported")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral", "num_local_experts": 2}, ["mixtral", "num_local_experts = 2"]),
        ({"model_type": "mistral", "residual_multiplier": 0.5}, ["mistral", "residual_multiplier = 0.5"]),
        ({"model_type": "mistral3", "vision_config": {"hidden_size": 16}}, ["mistral3", "a vision_config"]),
        ({"is_causal": False}, ["llama", "is_causal = False"]),
    ],
    ids=str,
)
def test_what_nobody_folded_is_refused_by_name_before_weights_are_read(
    refuses, compress, tiny_llama, tiny_tokenizer, tmp_path, changes, words
):
    tiny_llama(vocab_size=300).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    refuses(compress(model="model"), *words)


@pytest.mark.parametrize("verb", ["compress", "stream", "evaluate", "generate"])
def test_a_tokenizer_of_more_tokens_than_the_model_has(
    refuses, compress, evaluate, tiny_llama, tiny_tokenizer, tmp_path, verb
):
    tiny_llama(vocab_size=64).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    words = {
        "compress": compress(model="model"),
        "stream": compress("--stream", model="model"),
        "evaluate": evaluate(model="model"),
        "generate": ["generate", "model", "Aeiou"],
    }
    refuses(words[verb], "largest id", "the model has 64 tokens")


def test_a_generation_config_that_cannot_be(refuses, model_copy):
    (model_copy / "generation_config.json").write_text('{"num_beams": 0}')
    refuses(["generate", "model", "Aeiou"], "generation_config.json of 'model'")


def test_compressed_model_is_not_compressed_again(refuses, modegpt, compress):
    assert modegpt(*compress()).code == 0
    refuses([*compress(model="small"), "--out", "smaller"], "already compressed")


def test_too_little_calibration_text_says_what_it_has_and_wants(refuses, compress, text_file, tiny_tokenizer):
    has = len(tiny_tokenizer(text_file.read_text())["input_ids"])
    refuses(compress(samples=10_000), f"has {has} tokens", "10000 windows of 64 need 640000")


def test_too_little_evaluation_text_says_what_it_has_and_wants(refuses, evaluate, text_file, tiny_tokenizer):
    has = len(tiny_tokenizer(text_file.read_text())["input_ids"])
    refuses(evaluate("--windows", 10_000), f"has {has} tokens", "10000 windows of 64 need 640000")


def test_output_folder_that_holds_something(refuses, compress, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    assert refuses(compress(), "small already holds something", "--overwrite").out == ""  # before any work


@pytest.mark.parametrize("when", ["calibrating", "saving"])
def test_failing_run_with_overwrite_leaves_the_folder_as_it_was(
    refuses, compress, model_copy, tmp_path, monkeypatch, when
):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.safetensors").write_text("mine")
    if when == "calibrating":
        edit_weights(model_copy, spoil(float("nan"), "model.layers.2.mlp.up_proj.weight"))
        refuses(compress("--overwrite", model="model"), "layer 2")
    else:
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", half_then(OSError(28, "No space left on device")))
        refuses(compress("--overwrite"), "cannot write small: No space left on device")


def half_then(error):
    def fail(_self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    return fail


@pytest.mark.parametrize("out", ["file", "file/below", "."])
def test_output_that_cannot_be_a_folder(refuses, compress, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    assert refuses(compress("--out", out, "--overwrite"), out).out == ""


@pytest.mark.parametrize("out", ["model", "above", "link"])
def test_output_never_replaces_the_model_that_is_read(refuses, compress, model_copy, tmp_path, out):
    (tmp_path / "above").mkdir()
    model_copy.rename(tmp_path / "above" / "model")
    (tmp_path / "link").symlink_to("above")
    path = {"model": "above/model", "above": "above", "link": "link"}[out]
    refuses(compress("--out", path, "--overwrite", model="above/model"), "would replace the model")


def test_results_file_that_cannot_be_written(modegpt, evaluate, tmp_path, monkeypatch):
    def fail(path, text, **_):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    done = modegpt(*evaluate("--json", tmp_path / "results.json"))
    assert done.code == 2
    assert done.err == f"modegpt: cannot write {tmp_path}/results.json: No space left on device\n"
    assert contents(tmp_path) == {}


def test_ctrl_c_while_saving(refuses, modegpt, compress, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", half_then(KeyboardInterrupt()))
        refuses(compress(), "stopped", code=130)
    assert modegpt(*compress()).code == 0


@pytest.mark.slow
def test_full_disk(modegpt, compress, tmp_path, monkeypatch):
    """A real one, but for its size: no file may grow beyond 20 kB, so the weights stop halfway."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        done = modegpt(*compress("--json", "results.json"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert done.err.startswith("modegpt: cannot write small: ") and done.err.count("\n") == 1
    assert contents(tmp_path) == {}
    assert modegpt(*compress()).code == 0


@pytest.mark.slow
def test_ctrl_c_while_calibrating(start_modegpt, modegpt, compress, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 2048, "num_attention_heads": 4, "num_hidden_layers": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    before = contents(tmp_path)

    process = start_modegpt(*compress("--json", "results.json", model="model", samples=300))
    assert "19,200 tokens" in process.stdout.readline()
    time.sleep(0.5)
    assert process.poll() is None, "too fast to be interrupted"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "modegpt: stopped; nothing half-written was left behind"
    assert contents(tmp_path) == before
    assert modegpt(*compress()).code == 0


def test_leftover_of_a_killed_run_looks_unfinished_and_does_not_confuse_the_next(
    refuses, modegpt, compress, evaluate, tmp_path
):
    leftover = tmp_path / ".small.partial"
    leftover.mkdir()
    (leftover / "config.json").write_text("{}")
    (leftover / "model-00001-of-00002.safetensors").write_bytes(b"half")
    refuses(evaluate(model="./small"), "small")
    assert modegpt(*compress()).code == 0
    assert len(contents(leftover)) == 2  # it might be somebody's
    assert modegpt(*evaluate(model="small")).code == 0
