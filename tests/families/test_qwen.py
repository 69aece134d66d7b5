"""Windows, and norms of queries and keys."""

import copy
from typing import ClassVar

import pytest
import torch
from contract import SIZES, Contract, far, logits, tiny
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from modegpt import compress
from modegpt.families import family_of

WINDOW = {"use_sliding_window": True, "sliding_window": 8}
METHODS = ("svd", "svd-llm", "fwsvd", "slicegpt")  # those that have models of their own


class TestQwen2(Contract):
    variants: ClassVar = {
        "all layers": WINDOW | {"max_window_layers": 0},
        "some layers, ungrouped, tied": WINDOW
        | {"max_window_layers": 1, "num_key_value_heads": 4, "tie_word_embeddings": True},
    }
    refused: ClassVar = dict.fromkeys(METHODS, tuple(variants)) | {"modegpt-plus": ()}
    stock = Qwen2ForCausalLM
    unexported = (0.0, 0.3)

    @pytest.fixture
    def build(self):
        return lambda **changes: tiny(Qwen2Config(**SIZES | changes))

    def test_the_window_matters(self, dense, build, variant, tokens):
        other = build(**self.variants[variant] | {"use_sliding_window": False})
        assert far(logits(other, tokens), logits(dense, tokens)) > 1e-2
        assert far(logits(other, tokens[:, :8]), logits(dense, tokens[:, :8])) == 0


class TestQwen3(Contract):
    variants: ClassVar = {
        "grouped": {"head_dim": 16},
        "ungrouped, tied, biases": {"num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True},
        "one wide key-value head, window": WINDOW | {"num_key_value_heads": 1, "head_dim": 24, "max_window_layers": 1},
    }
    refused: ClassVar = dict.fromkeys(METHODS, tuple(variants)) | {"modegpt-plus": ()}
    stock = Qwen3ForCausalLM
    unexported = (0.3,)

    @pytest.fixture
    def build(self):
        return lambda **changes: tiny(Qwen3Config(**{"head_dim": 12} | SIZES | changes))

    def test_one_number_a_head_makes_up_for_the_norm_of_fewer_dims(self, dense, tokens, monkeypatch):
        """Half of the rotary pairs are small: without the others' number the norm makes the rest too large."""
        shape = family_of(dense).shape(dense)
        small_pairs = torch.arange(shape.query_key) % 2 == 1  # d/2 is even, so both dims of a pair
        for layer in dense.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight.data.view(-1, shape.query_key, 48)[:, small_pairs] *= 0.2
        expected = logits(dense, tokens)
        half = {"ratio": shape.query_key_cost * shape.query_key / 2 / shape.total, "allocation": "uniform"}
        half |= {"modules": ("query_key",), "multiple_of": 2}
        folded, _ = compress(copy.deepcopy(dense), tokens, **half)
        monkeypatch.setattr("modegpt.pipeline.kept_rms", lambda projected, dims: torch.ones(projected.shape[:-2]))
        plain, _ = compress(dense, tokens, **half)
        errors = [(logits(model, tokens) - expected).square().mean() for model in (folded, plain)]
        assert errors[0] < 0.7 * errors[1]

    def test_values_and_mlps_alone_leave_a_plain_model(self, dense, tokens):
        from modegpt.checkpoint.export import stock_model

        small, _ = compress(dense, tokens, ratio=0.3, modules=("value", "mlp"), multiple_of=2)
        exported, _ = stock_model(small)
        assert type(exported) is Qwen3ForCausalLM
        assert far(logits(exported, tokens), logits(small, tokens)) < 1e-5


def test_a_qwen2_is_understood_with_and_without_a_window():
    for config in (Qwen2Config(**SIZES), Qwen2Config(**SIZES, **WINDOW)):
        assert family_of(tiny(config)).layout == "qwen2"
