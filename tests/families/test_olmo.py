"""OLMo 2: norms behind attention and MLP, and one norm of the queries or keys of all heads."""

import copy
from typing import ClassVar

import pytest
import torch
from contract import SIZES, NormedContract, tiny
from transformers import Olmo2Config, Olmo2ForCausalLM

from modegpt import compress
from modegpt.families import family_of


class TestOlmo2(NormedContract):
    variants: ClassVar = {
        "grouped": {},
        "ungrouped, tied, biases": {"num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True},
        "one key-value head": {"num_key_value_heads": 1, "rms_norm_eps": 0.1},
    }
    refused: ClassVar = dict.fromkeys(("svd", "svd-llm", "fwsvd", "slicegpt", "modegpt-plus"), tuple(variants))
    stock = Olmo2ForCausalLM
    rounding = 1e-6

    @pytest.fixture
    def build(self):
        return lambda **changes: tiny(Olmo2Config(**SIZES | changes))


@torch.no_grad()
def test_the_number_of_a_layer_is_the_rms_of_the_kept_dims_of_all_heads(tokens):
    dense = tiny(Olmo2Config(**SIZES))
    attention = dense.model.layers[0].self_attn
    rows = attention.q_proj(dense.model.embed_tokens(tokens)).flatten(0, 1)  # (tokens, heads * d), of the first layer
    small, _ = compress(copy.deepcopy(dense), tokens, ratio=0.15, modules=("query_key",), multiple_of=2)
    own = small.model.layers[0].self_attn
    kept = family_of(dense).places(small.model.layers[0])["self_attn.q_proj"][1]
    ratio = (rows[:, kept].square().mean() / rows.square().mean()).sqrt()
    assert len(kept) < rows.shape[1] and abs(ratio - 1) > 0.01
    torch.testing.assert_close(own.q_norm.weight, attention.q_norm.weight[kept] * ratio)
