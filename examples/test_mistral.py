"""The first tests of a family: ratio 0 is the identity, more is not, and what it refuses."""

import copy

import mistral  # noqa: F401
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from modegpt import ModegptError, compress

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}
TOKENS = torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(0))


def tiny(window):
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(sliding_window=window, **SIZES, **HEADS)).double().eval()


def test_ratio_zero_is_the_identity_and_more_is_not():
    dense = tiny(None)
    same, _ = compress(copy.deepcopy(dense), TOKENS, ratio=0.0)
    small, report = compress(copy.deepcopy(dense), TOKENS, ratio=0.3)
    with torch.no_grad():
        torch.testing.assert_close(same(TOKENS).logits, dense(TOKENS).logits, rtol=0, atol=1e-10)
    assert abs(report.block_ratio - 0.3) < 0.05 and small.num_parameters() < dense.num_parameters()


def test_a_sliding_window_is_refused():
    with pytest.raises(ModegptError, match="sliding window"):
        compress(tiny(16), TOKENS, ratio=0.3)
