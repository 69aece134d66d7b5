"""One pass through a compressed model, whichever way its attention is computed."""

import os
import shutil

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

pytestmark = pytest.mark.usefixtures("one_thread")


def attentions(small):
    return [module for name, module in small.named_modules() if name.endswith(".self_attn")]


def test_softmax_scale_is_that_of_the_original_head(dense, small):
    head_dim = getattr(dense.config, "head_dim", None) or dense.config.hidden_size // dense.config.num_attention_heads
    assert max(small.config.query_key_ranks) < head_dim
    assert [attention.scaling for attention in attentions(small)] == [head_dim**-0.5] * 3


@torch.no_grad()
def test_eager_and_sdpa_agree_and_attentions_can_be_read(small, tokens):
    by_sdpa = small(tokens).logits
    small.set_attn_implementation("eager")
    result = small(tokens, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(result.logits, by_sdpa, rtol=1e-4, atol=1e-4)
    heads = small.config.num_attention_heads
    assert [tuple(weights.shape) for weights in result.attentions] == [(6, heads, 40, 40)] * 3
    assert len(result.hidden_states) == 4


@torch.no_grad()
def test_flash_kernels_get_one_head_dim_for_queries_keys_and_values(small, tokens):
    seen = []

    def flash(module, query, key, value, *args, **kwargs):
        seen.append((query.shape[-1], key.shape[-1], value.shape[-1]))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    expected = small(tokens).logits
    AttentionInterface.register("flash_like", flash)
    small.config._attn_implementation = "flash_like"
    torch.testing.assert_close(small(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    larger = list(map(max, small.config.query_key_ranks, small.config.value_ranks))
    assert seen == [(dim, dim, dim) for dim in larger]


@pytest.fixture
def fresh_compiler():
    """torch.compile gives up, silently, on code that it has compiled for many models before."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dense", ["llama-3.1", "opt", "opt-350m"], indirect=True)
@torch.no_grad()
def test_its_graph_is_captured_whole(fresh_compiler, small, tokens):
    """What torch.compile does before it calls a C++ compiler."""
    graph = torch.compile(small, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(graph(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dense", ["llama-3.2", "opt-350m"], indirect=True)
@torch.no_grad()
def test_compiled_by_torch_it_gives_the_same_logits(fresh_compiler, small, tokens):
    del small.get_decoder().layers[2:]  # each has sizes, and so C++, of its own; two show that
    compiled = torch.compile(small, fullgraph=True)
    torch.testing.assert_close(compiled(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-4)


def test_no_stale_size_remains(small):
    linears = [module for module in small.modules() if isinstance(module, torch.nn.Linear)]
    assert all(linear.weight.shape == (linear.out_features, linear.in_features) for linear in linears)
    for attention, query_key, value in zip(
        attentions(small), small.config.query_key_ranks, small.config.value_ranks, strict=True
    ):
        heads, key_heads = small.config.num_attention_heads, attention.v_proj.out_features // value
        assert attention.q_proj.out_features == heads * query_key
        assert attention.k_proj.out_features == key_heads * query_key
    if small.config.model_type == "modegpt_llama":
        assert [layer.mlp.intermediate_size for layer in small.model.layers] == small.config.mlp_ranks


def test_one_training_step_lowers_the_loss(small, tokens):
    small.train().requires_grad_(True)
    small.config.use_cache = False
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    before = small(tokens, labels=tokens).loss
    before.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in small.parameters() if parameter.requires_grad)
    optimizer.step()
    assert small(tokens, labels=tokens).loss < before
