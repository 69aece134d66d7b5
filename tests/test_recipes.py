"""The recipes of docs/use.md, run one after the other on a tiny model."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modegpt import compress
from modegpt.checkpoint.gguf_file import write_gguf

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "use.md"
LLAMA_CPP, QUANTIZE, *OTHERS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folders(tiny_llama, tiny_tokenizer, tokens, tmp_path, monkeypatch):
    """dense and small, in the current folder."""
    monkeypatch.chdir(tmp_path)
    dense = tiny_llama(vocab_size=len(tiny_tokenizer))
    dense.save_pretrained("dense")
    small, _ = compress(dense, tokens, ratio=0.3, multiple_of=2)
    small.save_pretrained("small")
    tiny_tokenizer.save_pretrained("small")
    write_gguf(AutoModelForCausalLM.from_pretrained("dense"), tiny_tokenizer, Path("small.gguf"), "f32")


@pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not here: pip install torchao (it speaks up in every command)"
)
@torch.no_grad()
def test_quantize(folders):
    exec(QUANTIZE, found := {})
    small = AutoModelForCausalLM.from_pretrained("small", dtype=torch.float32)
    ids = torch.arange(2, 100)[None]
    expected = small(ids).logits
    assert 0 < (found["quantized"](ids).logits - expected).norm() / expected.norm() < 0.05


@torch.enable_grad()
def test_fuse_recover_draft_and_export(folders):
    found = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
    for recipe in OTHERS:
        exec(recipe, found)
    with torch.no_grad():
        small, recovered = (
            AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in ("small", "recovered")
        )
        before, after = (model(found["batch"], labels=found["batch"]).loss for model in (small, recovered))
        assert after < before - 0.1 and recovered.config.mlp_ranks == small.config.mlp_ranks
        alone = found["dense"].generate(**found["prompt"], do_sample=False, max_new_tokens=20)
        assert torch.equal(found["text"], alone)
        for length in (5, 40):
            ids = found["batch"][:, :length]
            torch.testing.assert_close(found["fused"](ids).logits, small(ids).logits, rtol=1e-4, atol=1e-4)
            graph = found["program"].module()(ids, use_cache=False).logits
            torch.testing.assert_close(graph, small(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not here: pip install 'modegpt[llama-cpp]'")
def test_llama_cpp_writes_text(folders, capsys):
    exec(LLAMA_CPP, {})
    assert capsys.readouterr().out.strip()
