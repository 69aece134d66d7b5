import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification, MistralConfig, MistralForCausalLM

from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.pipeline import compress


def test_a_plain_llama_is_understood(tiny_llama):
    assert family_of(tiny_llama()).shape(tiny_llama()).mlp == 80


@pytest.mark.parametrize(
    "changes, part",
    [({"attention_bias": True}, "self_attn.k_proj.bias"), ({"mlp_bias": True}, "mlp.down_proj.bias")],
    ids=str,
)
def test_biases_are_refused_by_name(tiny_llama, changes, part):
    with pytest.raises(ModegptError, match=part):
        family_of(tiny_llama(**changes))


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


def test_other_families_and_heads_are_refused(tiny_llama):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    with pytest.raises(ModegptError, match="'gpt2' is not supported"):
        family_of(gpt2)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    mistral = MistralForCausalLM(MistralConfig(num_attention_heads=2, num_key_value_heads=1, **tiny))
    with pytest.raises(ModegptError, match="'mistral' is not supported"):
        family_of(mistral)
    with pytest.raises(ModegptError, match="LlamaForSequenceClassification"):
        family_of(LlamaForSequenceClassification(tiny_llama().config))


def test_a_compressed_model_is_not_compressed_again(tiny_llama, tokens):
    small, _ = compress(tiny_llama(), tokens, ratio=0.3)
    with pytest.raises(ModegptError, match="already compressed"):
        family_of(small)
