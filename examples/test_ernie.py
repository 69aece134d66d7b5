"""The first tests of a dialect: rewritten it computes the same, and what it would get wrong is refused by name."""

import ernie  # noqa: F401
import pytest
import torch
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from modegpt import ModegptError, compress
from modegpt.families import rewritten

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}
TOKENS = torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(0))


def tiny(**entries):
    torch.manual_seed(0)
    model = Ernie4_5ForCausalLM(Ernie4_5Config(**SIZES, **HEADS, **entries)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("biased", [False, True])
def test_rewritten_and_at_ratio_zero_it_computes_the_same_and_with_more_it_shrinks(biased):
    dense = tiny(use_bias=biased)
    with torch.no_grad():
        expected = dense(TOKENS).logits
        torch.testing.assert_close(rewritten(dense)(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compress(dense, TOKENS, ratio=0.0)[0](TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    small, report = compress(tiny(use_bias=biased), TOKENS, ratio=0.3)
    assert abs(report.block_ratio - 0.3) < 0.05 and small.num_parameters() < dense.num_parameters()


def test_what_nobody_folded_is_refused_by_name():
    with pytest.raises(ModegptError, match="logit_scale = 2"):
        rewritten(tiny(logit_scale=2.0))
