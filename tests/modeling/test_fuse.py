"""Fewer and larger kernels, the same model."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, StaticCache

pytestmark = pytest.mark.usefixtures("one_thread")
FUSIBLE = ["llama-2", "llama-3.2", "wide-heads", "biased"]


@pytest.fixture
def fused(small):
    return copy.deepcopy(small).fuse()


@pytest.mark.parametrize("dense", FUSIBLE, indirect=True)
@torch.no_grad()
def test_fused_it_computes_and_writes_the_same(small, fused, tokens):
    torch.testing.assert_close(fused(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-5)
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = {"input_ids": tokens[:2, :7], "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    assert torch.equal(fused.generate(**prompt, **greedy), small.generate(**prompt, **greedy))


@pytest.mark.parametrize("dense", FUSIBLE, indirect=True)
@torch.no_grad()
def test_one_token_over_a_static_cache_is_the_same(small, fused, tokens):
    found = []
    for model in (small, fused):
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(tokens[:, :8], past_key_values=cache, use_cache=True)
        found.append(model(tokens[:, 8:9], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense", ["biased"], indirect=True)
@torch.no_grad()
def test_weights_keep_names_values_and_memory(small, fused, tokens, tmp_path):
    expected, found = small.state_dict(), fused.state_dict()
    assert list(expected) == list(found) and all(torch.equal(expected[name], found[name]) for name in expected)
    for module in (fused.model.layers[0].self_attn, fused.model.layers[0].mlp):
        storages = {getattr(module, name).weight.untyped_storage().data_ptr() for name in module.parts}
        assert storages == {module.fused[0].untyped_storage().data_ptr()}
    fused.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens).logits, small(tokens).logits)


@pytest.mark.parametrize("dense", ["biased"], indirect=True)
@torch.no_grad()
def test_loading_converting_and_fusing_again_leave_it_fused(small, fused, tokens):
    other = {
        name: value.flip(0) if name.endswith("q_proj.weight") else value for name, value in small.state_dict().items()
    }
    for model in (small, fused):
        model.load_state_dict(other)
        model.double()
    assert fused.fuse() is fused
    torch.testing.assert_close(fused(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("dense", ["llama-3.1"], indirect=True)
@torch.no_grad()
def test_its_graph_is_captured_whole(fused, tokens):
    torch.compiler.reset()
    graph = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for length in (8, 1):
        torch.testing.assert_close(
            graph(tokens[:, :length]).logits, fused(tokens[:, :length]).logits, rtol=1e-4, atol=1e-5
        )
    torch.compiler.reset()
