"""A grouped Llama whose key-value heads are repeated is a multi-head one that computes the same."""

import pytest
import torch

from modegpt.pipeline import compress

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize("dense", ["llama-3.1", "llama-3.2", "tinyllama", "wide-heads"], indirect=True),
]


@pytest.fixture
def expanded(dense, tiny_llama):
    """As many key-value heads as query heads, in the order in which the query heads shared them."""
    config = dense.config
    model = tiny_llama(**config.to_dict() | {"num_key_value_heads": config.num_attention_heads})
    state = dense.state_dict()
    for name, weight in state.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.view(config.num_key_value_heads, config.head_dim, -1)
            group = config.num_attention_heads // config.num_key_value_heads
            state[name] = heads.repeat_interleave(group, dim=0).flatten(0, 1)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def test_repeated_key_value_heads_change_no_logits(dense, expanded, tokens):
    assert expanded.config.num_key_value_heads > dense.config.num_key_value_heads
    torch.testing.assert_close(expanded(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compressing_nothing_of_the_repeated_heads_changes_no_logits(dense, expanded, tokens):
    expected = dense(tokens).logits
    small, report = compress(expanded, tokens, ratio=0.0)
    assert report.block_ratio == 0 and small.config.num_key_value_heads == small.config.num_attention_heads
    torch.testing.assert_close(small(tokens).logits, expected, rtol=1e-3, atol=1e-3)
