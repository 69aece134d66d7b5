"""Windows, and norms of queries and keys."""

from typing import ClassVar

import pytest
from contract import SIZES, Contract, NormedContract, far, logits, tiny
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


class TestQwen3(NormedContract):
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

    def test_values_and_mlps_alone_leave_a_plain_model(self, dense, tokens):
        from modegpt.checkpoint.export import stock_model

        small, _ = compress(dense, tokens, ratio=0.3, modules=("value", "mlp"), multiple_of=2)
        exported, _ = stock_model(small)
        assert type(exported) is Qwen3ForCausalLM
        assert far(logits(exported, tokens), logits(small, tokens)) < 1e-5


def test_a_qwen2_is_understood_with_and_without_a_window():
    for config in (Qwen2Config(**SIZES), Qwen2Config(**SIZES, **WINDOW)):
        assert family_of(tiny(config)).layout == "llama with windows"
