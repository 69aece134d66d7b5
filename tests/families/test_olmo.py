"""OLMo 2: norms behind attention and MLP, and one norm of the queries or keys of all heads."""

from typing import ClassVar

import pytest
import torch
from contract import SIZES, Contract, far, logits, tiny
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
