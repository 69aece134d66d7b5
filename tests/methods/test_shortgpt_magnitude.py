import copy

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.methods import magnitude, shortgpt

GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=["llama", "opt"])
def dense(request, tiny_llama, tiny_opt):
    return {"llama": tiny_llama, "opt": tiny_opt}[request.param](num_hidden_layers=4)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_shortgpt_drops_the_layers_that_do_least(dense, tokens):
    for name, parameter in dense.get_decoder().layers[2].named_parameters():
        if any(part in name for part in ("o_proj", "out_proj", "down_proj", "fc2")):
            parameter.data.zero_()  # layer 2 adds nothing to the stream
    expected = logits(dense, tokens)
    small, report = shortgpt.compress(dense, shortgpt.measure(dense, tokens), 0.25)
    assert report.settings["dropped_layers"] == [2]
    assert small.config.num_hidden_layers == 3
    torch.testing.assert_close(logits(small, tokens), expected, rtol=1e-5, atol=1e-5)


def test_shortgpt_keeps_a_layer(dense, tokens):
    with pytest.raises(ModegptError, match="leaves none"):
        shortgpt.compress(dense, torch.rand(4), 0.9)


def test_a_ratio_below_half_a_layer_is_refused_and_nothing_is_dropped(tiny_llama):
    model = tiny_llama(num_hidden_layers=5)
    with pytest.raises(ModegptError, match=r"ShortGPT drops whole layers, and 10.0% of 5 is less than half of one"):
        shortgpt.compress(model, torch.arange(5.0), 0.1)
    assert len(model.model.layers) == 5
    small, _ = shortgpt.compress(model, torch.arange(5.0), 0.0)
    assert len(small.model.layers) == 5


def test_magnitude_drops_what_weighs_nothing(dense, tokens):
    """Half of the channels and of each head's dims (whole rotary pairs) are tiny: dropping them is nearly exact."""
    for layer in dense.get_decoder().layers:
        attention = layer.self_attn
        d = attention.head_dim
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            dead = torch.arange(linear.out_features) % 2 == 1
            linear.weight.data[dead] *= 1e-6
            if linear.bias is not None and linear is not attention.v_proj:
                linear.bias.data[dead] *= 1e-6
        assert d % 4 == 0  # so that i and i + d/2 are both odd
        down = layer.mlp.down_proj if hasattr(layer, "mlp") else layer.fc2
        ups = (layer.mlp.gate_proj, layer.mlp.up_proj) if hasattr(layer, "mlp") else (layer.fc1,)
        down.weight.data[:, 1::2] *= 1e-6
        for up in ups:
            up.weight.data[1::2] *= 1e-6
    expected = logits(dense, tokens)
    small, _ = magnitude.compress(copy.deepcopy(dense), None, 0.5)
    torch.testing.assert_close(logits(small, tokens), expected, rtol=1e-3, atol=1e-3)
