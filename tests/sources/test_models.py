"""Names, devices, dtypes, and what is wrong with a model's folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modegpt.errors import ModegptError
from modegpt.sources import EMBEDDED_MODELS, auto_dtype, cache_dir, load_model, resolve_model


@pytest.fixture
def model_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def as_bin(folder: Path) -> Path:
    """Replaces the safetensors file by the older pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def custom_code(folder: Path) -> None:
    edit_config(
        folder,
        model_type="home-made",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.M"},
    )
    (folder / "code.py").write_text("raise SystemExit('this must never run')")


def sentencepiece_alone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')


def own_tokenizer(folder: Path) -> None:
    entries = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    (folder / "code.py").write_text("raise SystemExit('this must never run')")


def test_folder_loads_ready_for_inference(tiny_folder: Path):
    model, tokenizer = load_model(str(tiny_folder), dtype="float32")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer.decode(tokenizer("two words")["input_ids"]) == "two words"


def test_loading_leaves_the_users_settings_of_transformers(tiny_folder: Path):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(tiny_folder))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_loading_says_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]):
    load_model(str(tiny_folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_dtype_by_name_or_as_such(tiny_folder: Path, dtype: str | torch.dtype):
    assert load_model(str(tiny_folder), dtype=dtype)[0].dtype == torch.float16


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int8, "nn"])
def test_unknown_dtype(tiny_folder: Path, dtype: str | torch.dtype):
    with pytest.raises(ModegptError, match=r"unknown dtype .* use auto, float32, bfloat16"):
        load_model(str(tiny_folder), dtype=dtype)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True, "neon": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert auto_dtype("cpu") == dtype


def test_auto_dtype_when_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert auto_dtype("cpu") == torch.float32
    assert auto_dtype(torch.device("cuda")) == torch.bfloat16


def test_auto_dtype_is_the_default(tiny_folder: Path):
    assert load_model(str(tiny_folder))[0].dtype == auto_dtype("cpu")


def test_auto_device(tiny_folder: Path):
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_model(str(tiny_folder), device="auto")[0].device.type == wanted


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:99", "no device 'cuda:99'"),
        ("gpu", "unknown device 'gpu': use cpu, cuda, cuda:N or auto"),
        ("meta", "unsupported device 'meta'"),
    ],
)
def test_no_such_device(tiny_folder: Path, device: str, words: str):
    with pytest.raises(ModegptError, match=words):
        load_model(str(tiny_folder), device=device)


def test_no_cuda(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModegptError, match="torch sees 0 CUDA devices; use cpu or auto"):
        load_model(str(tiny_folder), device="cuda")


def test_folder_without_tokenizer(model_copy: Path):
    (model_copy / "tokenizer.json").unlink()
    assert load_model(str(model_copy))[1] is None


DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks a weights file"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "corrupt or cut short"),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), "corrupt or cut short"),
    "garbage weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 500),
        "corrupt or cut short",
    ),
    "cut .bin": (lambda f: cut(as_bin(f)), "corrupt or cut short"),
    "garbage .bin": (lambda f: as_bin(f).write_bytes(b"garbage" * 9), "corrupt, or a pickle of more than tensors"),
    "lost tensor": (
        lambda f: edit_weights(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        "lack 1 tensors, the first is model.layers.1.mlp.up_proj.weight",
    ),
    "unknown bias": (
        lambda f: edit_weights(f, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})),
        "the first is model.layers.0.self_attn.q_proj.bias",
    ),
    "other sizes": (lambda f: edit_config(f, intermediate_size=48), "do not have the sizes"),
    "fewer layers": (lambda f: edit_config(f, num_hidden_layers=1), "does not use"),
    "no JSON": (lambda f: cut(f / "config.json"), "a JSON file of .* is damaged"),
    "bad value": (lambda f: edit_config(f, hidden_size="x"), "config.json of .* is not valid: .*hidden_size"),
    "unknown type": (lambda f: edit_config(f, model_type="foo"), "is no causal language model"),
    "no causal model": (lambda f: edit_config(f, model_type="t5"), "is no causal language model"),
    "own code": (custom_code, "which modegpt does not run"),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json"), "the tokenizer of .* is missing or damaged"),
    "sentencepiece alone": (sentencepiece_alone, "no tokenizer.json.* run `pip install sentencepiece protobuf`"),
    "tokenizer's own code": (own_tokenizer, "the tokenizer of .* needs Python code .* which modegpt does not run"),
    "other tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "the tokenizer of .* is missing or damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_is_one_line(model_copy: Path, name: str, capfd: pytest.CaptureFixture[str]):
    damage, words = DAMAGE[name]
    damage(model_copy)
    with pytest.raises(ModegptError, match=words) as caught:
        load_model(str(model_copy))
    assert "\n" not in str(caught.value)
    assert str(model_copy) in str(caught.value)
    assert capfd.readouterr().err == ""


def test_old_rotary_buffers_are_no_reason_to_refuse(model_copy: Path):
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(model_copy, lambda weights: weights.update({key: torch.ones(4)}))
    load_model(str(model_copy))


def test_missing_shard(model_copy: Path):
    model, _ = load_model(str(model_copy))
    (model_copy / "model.safetensors").unlink()
    model.save_pretrained(model_copy, max_shard_size="10KB")
    next(model_copy.glob("model-00002-*")).unlink()
    with pytest.raises(ModegptError, match="lacks a weights file"):
        load_model(str(model_copy))


def test_any_other_failure_of_loading_is_one_line_that_keeps_its_message(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("something nobody thought of\nand its second line")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", broken)
    with pytest.raises(ModegptError, match=r"cannot be loaded: something nobody thought of$"):
        load_model(str(tiny_folder))


def test_a_lack_of_memory_passes(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(str(tiny_folder))


def test_the_cause_stays_attached(model_copy: Path):
    cut(model_copy / "model.safetensors")
    with pytest.raises(ModegptError) as caught:
        load_model(str(model_copy))
    assert type(caught.value.__cause__).__name__ == "SafetensorError"


@pytest.mark.parametrize("name", ["org/name", "gpt2", "facebook/opt-125m", "meta-llama/Llama-2-7b-hf"])
def test_hub_ids_are_not_looked_up(name: str):
    assert resolve_model(name) == name


def test_folder_is_itself(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve_model(str(tiny_folder)) == str(tiny_folder)
    monkeypatch.chdir(tiny_folder.parent)
    assert resolve_model("tiny") == "tiny"
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert resolve_model("~/tiny") == str(tiny_folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2-135", "did you mean smollm2-135m"),
        ("SmolLM2-135M", "did you mean smollm2-135m"),
        ("./nowhere", "no model './nowhere': no such folder"),
        ("/no/such/folder", "no such folder"),
        ("", "no such folder"),
        ("a/b/c", "no such folder"),
        ("two words", "no such folder"),
    ],
)
def test_names_that_are_nothing(name: str, words: str):
    with pytest.raises(ModegptError, match=words):
        resolve_model(name)


def test_folder_without_config(tmp_path: Path):
    with pytest.raises(ModegptError, match=r"has no config.json"):
        resolve_model(str(tmp_path))


def test_file_instead_of_folder(tiny_folder: Path):
    with pytest.raises(ModegptError, match="is a file: give the model's folder"):
        resolve_model(str(tiny_folder / "model.safetensors"))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("MODEGPT_CACHE_DIR")
    assert cache_dir().name == "modegpt"


def test_embedded_models_are_described():
    assert "Apache-2.0" in EMBEDDED_MODELS["smollm2-135m"]
