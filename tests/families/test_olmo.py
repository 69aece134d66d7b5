"""OLMo 2: norms behind attention and MLP, and one norm of the queries or keys of all heads."""

import copy
from typing import ClassVar

import pytest
import torch
from contract import SIZES, Contract, logits, tiny
from transformers import Olmo2Config, Olmo2ForCausalLM

from modegpt import compress
from modegpt.families import family_of


class TestOlmo2(Contract):
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

    def test_one_number_a_layer_makes_up_for_the_norm_of_fewer_dims(self, dense, tokens, monkeypatch):
        """As in a Qwen3."""
        shape = family_of(dense).shape(dense)
        small_pairs = torch.arange(shape.query_key) % 2 == 1  # d/2 is even, so both dims of a pair
        for layer in dense.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight.data.view(-1, shape.query_key, 48)[:, small_pairs] *= 0.2
        expected = logits(dense, tokens)
        half = {"ratio": shape.query_key_cost * shape.query_key / 2 / shape.total, "allocation": "uniform"}
        half |= {"modules": ("query_key",), "multiple_of": 2}
        folded, _ = compress(copy.deepcopy(dense), tokens, **half)
        monkeypatch.setattr("modegpt.pipeline.kept_rms", lambda projected, *_: torch.ones(projected.shape[:-2]))
        plain, _ = compress(dense, tokens, **half)
        errors = [(logits(model, tokens) - expected).square().mean() for model in (folded, plain)]
        assert errors[0] < 0.7 * errors[1]


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
