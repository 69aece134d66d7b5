from importlib.util import find_spec

import pytest

from modegpt.study.results import load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not here: pip install 'modegpt[llama-cpp]'")
def test_dense_and_compressed_models_take_turns(modegpt, tiny_llama, tiny_tokenizer, text_file, tmp_path):
    """Heads and channels enough for multiples of 32."""
    tiny_llama(hidden_size=64, intermediate_size=256, vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "d")
    tiny_tokenizer.save_pretrained(tmp_path / "d")
    words = ["--model", tmp_path / "d", "--calibration", text_file, "--samples", 8, "--length", 64, "--threads", 1]
    words += ["--tokens", 4, "--repeats", 2, "--types", "f32,q8_0", "--out", tmp_path / "speed.json"]
    done = modegpt("bench", "llama-cpp", *words)
    assert done.code == 0, done.err
    rows = load(tmp_path / "speed.json").rows
    variants = {f"{name}, {kind}" for name in ("dense", "stock", "gguf") for kind in ("f32", "q8_0")}
    for what in ("size on disk", "decode", "greedy tokens in common"):
        assert {row.variant for row in rows if row.what == what} == variants
    sizes = {row.variant: row.value for row in rows if row.what == "size on disk"}
    assert sizes["stock, q8_0"] < sizes["stock, f32"] < sizes["dense, f32"]
    assert all(row.details["speed_up"] == 1 for row in rows if row.variant == "dense, f32" and row.what == "decode")
    assert modegpt("bench", "llama-cpp", "--types", "q4", "--out", tmp_path / "a.json").code == 2
