import pytest
import torch
from contract import Contract
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.pipeline import compress

STRETCHED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


class TestLlama(Contract):
    stock = LlamaForCausalLM
    variants = {  # noqa: RUF012
        "grouped, llama 3 rope": {"rope_parameters": STRETCHED_ROPE},
        "ungrouped, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "one wide key-value head": {"num_key_value_heads": 1, "head_dim": 24},
        "biases": {"attention_bias": True, "mlp_bias": True},
    }

    @pytest.fixture
    def build(self, tiny_llama):
        return tiny_llama


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_a_bias_that_the_config_does_not_name_is_refused_by_name(tiny_llama, changes):
    model, plain = tiny_llama(**changes), tiny_llama()
    model.config = plain.config
    with pytest.raises(ModegptError, match=r"layer 0 has an unknown part '(self_attn.k|mlp.down)_proj.bias'"):
        family_of(model)


def test_an_unknown_part_is_refused_by_name(tiny_llama):
    model = tiny_llama()
    model.model.layers[1].self_attn.q_norm = torch.nn.RMSNorm(16)
    with pytest.raises(ModegptError, match=r"layer 1 has an unknown part 'self_attn.q_norm.weight'"):
        family_of(model)


def test_a_missing_part_is_refused_by_name(tiny_llama):
    model = tiny_llama()
    model.model.layers[2].input_layernorm = torch.nn.Identity()
    with pytest.raises(ModegptError, match=r"layer 2 has no part 'input_layernorm.weight'"):
        family_of(model)


def test_a_replaced_linear_is_refused_by_name(tiny_llama):
    class Quantized(torch.nn.Linear):
        pass

    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = Quantized(48, 80, bias=False)
    with pytest.raises(ModegptError, match=r"'mlp.up_proj' is a Quantized"):
        family_of(model)


def test_other_heads_are_refused(tiny_llama):
    with pytest.raises(ModegptError, match="LlamaForSequenceClassification"):
        family_of(LlamaForSequenceClassification(tiny_llama().config))


def test_a_compressed_model_is_not_compressed_again(tiny_llama, tokens):
    small, _ = compress(tiny_llama(), tokens, ratio=0.3)
    with pytest.raises(ModegptError, match="already compressed"):
        family_of(small)
