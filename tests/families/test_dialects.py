"""Models that are a Llama, an OPT or a Qwen2 under another name."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from contract import SIZES, Contract, far, logits, tiny
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    OPTForCausalLM,
    Phi3Config,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
)

from modegpt import compress
from modegpt.errors import ModegptError
from modegpt.families import attributes, family_of, rewritten, supported

MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3}
MULTIPLIERS |= {"logits_scaling": 5.0}
GPT2_SIZES = {"n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 256, "vocab_size": 128, "initializer_range": 0.2}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
WITHOUT_WINDOWS = ("svd", "svd-llm", "fwsvd", "slicegpt")


class DialectContract(Contract):
    stock = LlamaForCausalLM
    sizes: ClassVar[dict] = SIZES
    changed: ClassVar[float] = 1e-6  # relative, in float32: the largest difference of logits that rewriting makes

    @pytest.fixture
    def build(self):
        return lambda **changes: tiny(self.config(**self.sizes | changes))

    def test_rewritten_it_computes_the_same_and_shares_what_does_not_change(self, dense, tokens):
        new, kind = rewritten(dense), dense.config.model_type
        assert new is dense or (type(new) is self.stock and new.config.rewritten_from == kind)
        assert far(logits(new, tokens), logits(dense, tokens)) <= self.changed
        assert family_of(new)
        assert new.config.tie_word_embeddings == dense.config.tie_word_embeddings
        own = {parameter.data_ptr() for parameter in dense.parameters()}
        assert sum(parameter.data_ptr() in own for parameter in new.parameters()) >= len(own) / 3


class TestMistral(DialectContract):
    config = MistralConfig
    variants: ClassVar = {"wide heads, tied": {"sliding_window": None, "head_dim": 16, "tie_word_embeddings": True}}
    changed = 0.0


class TestMistralWithAWindow(DialectContract):
    config = MistralConfig
    variants: ClassVar = {"window": {"sliding_window": 8, "head_dim": 16}}
    refused: ClassVar = dict.fromkeys(WITHOUT_WINDOWS, tuple(variants))
    stock = Qwen2ForCausalLM
    changed = 0.0


class TestMinistral(DialectContract):
    config = MinistralConfig
    variants: ClassVar = {
        "a window in one layer": {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 16,
        }
    }
    refused: ClassVar = dict.fromkeys(WITHOUT_WINDOWS, tuple(variants))
    stock = Qwen2ForCausalLM
    changed = 0.0


class TestQwen2WithoutAWindow(DialectContract):
    config = Qwen2Config
    variants: ClassVar = {"tied": {"tie_word_embeddings": True}}
    changed = 0.0


SWITCH = 16  # positions; fewer than the contract's tests write
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0}
LONG_ROPE |= {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0, 2.3, 2.6, 2.9, 3.2, 3.5]}


class TestPhi3(DialectContract):
    config = Phi3Config
    variants: ClassVar = {"long rope": {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": SWITCH}}


class TestPhi3WithAWindow(DialectContract):
    config = Phi3Config
    variants: ClassVar = {"window": {"sliding_window": 8}}
    refused: ClassVar = dict.fromkeys(WITHOUT_WINDOWS, tuple(variants))
    stock = Qwen2ForCausalLM


class TestGranite(DialectContract):
    config = GraniteConfig
    variants: ClassVar = {
        "grouped": MULTIPLIERS,
        "tied, biases": MULTIPLIERS | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    }


class TestGemma(DialectContract):
    config = GemmaConfig
    variants: ClassVar = {
        "one wide key-value head": {"num_key_value_heads": 1, "head_dim": 24},
        "untied": {"head_dim": 16, "tie_word_embeddings": False},
    }
    rounding = 1e-5  # Gemma weighs its norms in float32


class TestGPT2(DialectContract):
    config = GPT2Config
    sizes = GPT2_SIZES
    variants: ClassVar = {"tied": {}, "narrow": {"n_inner": 80, "tie_word_embeddings": False}}
    stock = OPTForCausalLM


@pytest.mark.parametrize(
    ("config", "changes", "name"),
    [
        (GPT2Config, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2Config, {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        (GPT2Config, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        (GemmaConfig, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GemmaConfig, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (MistralConfig, {"residual_multiplier": 0.5}, "residual_multiplier"),
        (Qwen2Config, {"embedding_multiplier": 12.0}, "embedding_multiplier"),
        (Phi3Config, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (Qwen2Config, {"is_causal": False}, "is_causal"),
        (MinistralConfig, {"logit_scale": 0.5, "head_dim": 16}, "logit_scale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_that_nobody_folded_is_refused_by_name(config, changes, name):
    sizes = GPT2_SIZES if config is GPT2Config else SIZES
    with pytest.raises(ModegptError, match=f"has {name} = "):
        rewritten(tiny(config(**sizes | changes)))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (Qwen2Config, {"mlp_bias": True}),
        (Qwen2Config, {"mlp_bias": True, "attention_bias": False, "use_sliding_window": True, "sliding_window": 8}),
        (Qwen3Config, {"mlp_bias": True}),
        (Olmo2Config, {"mlp_bias": True}),
        (MistralConfig, {"attention_bias": True, "layer_norm_eps": 0.1}),
    ],
    ids=str,
)
def test_an_entry_that_the_class_does_not_read_changes_nothing(config, changes, tokens):
    model = tiny(config(**SIZES | changes))
    expected = logits(model, tokens)
    small, _ = compress(model, tokens, ratio=0.0)
    assert far(logits(small, tokens), expected) < 1e-5


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"sliding_window": 8, "num_local_experts": 4}, ": it has num_local_experts = 4"),
        ({"text_config": {"num_experts": 2}, "vision_config": {"depth": 1}}, ": it has a vision_config"),
        ({"attn_logit_softcapping": 50.0}, ": it has attn_logit_softcapping = 50.0"),
        ({"num_local_experts": 0, "linear_key_head_dim": 8}, ": it has linear_key_head_dim = 8"),
        ({"hidden_size": 8}, ""),
    ],
    ids=str,
)
def test_a_refusal_tells_what_is_strange_about_a_model(entries, told):
    assert attributes.told(entries) == told


def test_a_part_that_nobody_folded_is_refused_by_name():
    model = tiny(MistralConfig(**SIZES, sliding_window=None))
    model.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(torch.ones(48))
    with pytest.raises(ModegptError, match=r"unknown part 'model.layers.1.mlp.down_proj.bias'"):
        rewritten(model)
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(ModegptError, match=r"no part 'model.layers.0.mlp.up_proj.weight'"):
        rewritten(model)


def test_readme_and_the_refusal_name_the_same_models():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert supported() in " ".join(readme.split())
    with pytest.raises(ModegptError, match=re.escape(supported())):
        family_of(tiny(GPTNeoXConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=8)))


def test_who_has_not_rewritten_it_is_told_how():
    with pytest.raises(ModegptError, match="load_model"):
        family_of(tiny(GemmaConfig(**SIZES)))
