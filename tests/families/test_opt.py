import copy

import pytest
import torch
from contract import Contract
from transformers import OPTForCausalLM, OPTModel

from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.pipeline import compress

MODULES = ("query_key", "value", "mlp")


class TestOPT(Contract):
    stock = OPTForCausalLM
    variants = {  # noqa: RUF012
        "tied": {},
        # normalises after the blocks and embeds in fewer dims than it computes in
        "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        "untied, gelu": {"tie_word_embeddings": False, "activation_function": "gelu"},
    }
    refused = {"slicegpt": ("350m",), "modegpt-plus": ("350m",)}  # noqa: RUF012

    @pytest.fixture
    def build(self, tiny_opt):
        return tiny_opt


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_the_bias_of_the_values_matters_and_is_folded(tiny_opt, tokens):
    """Dropping it, as one public code does, is not the identity."""
    dense = tiny_opt().double()
    expected = logits(dense, tokens)
    dropped = copy.deepcopy(dense)
    for layer in dropped.model.decoder.layers:
        layer.self_attn.v_proj.bias.data.zero_()
    assert (logits(dropped, tokens) - expected).abs().max() > 0.1
    small, _ = compress(dense, tokens, ratio=0.0)
    assert all(layer.self_attn.v_proj.bias is None for layer in small.model.decoder.layers)
    torch.testing.assert_close(logits(small, tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_alone_bears_the_budget(tiny_opt, tokens, module):
    small, report = compress(tiny_opt(), tokens, ratio=0.1, modules=(module,), multiple_of=1, allocation="uniform")
    assert report.block_ratio == pytest.approx(0.1, abs=0.01)
    full = {"query_key": 16, "value": 16, "mlp": 80}
    for other in set(MODULES) - {module}:
        assert getattr(small.config, f"{other}_ranks") == [full[other]] * 3
    assert max(getattr(small.config, f"{module}_ranks")) < full[module]


def test_unused_dims_cost_nothing_to_remove(tiny_opt, tokens):
    """Half of each head's query-key and value dims and half of the channels do nothing: 50 % is exact."""
    dense = tiny_opt().double()
    for layer in dense.model.decoder.layers:
        attention, dead = layer.self_attn, torch.arange(48).view(3, 16)[:, ::2].flatten()
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.data[dead] = 0
            projection.bias.data[dead] = 0
        attention.v_proj.weight.data[dead] = 0  # their bias stays: it must survive in the output's
        layer.fc1.weight.data[::2] = 0
        layer.fc1.bias.data[::2] = -1
    expected = logits(dense, tokens)
    small, report = compress(dense, tokens, ratio=0.5, allocation="uniform")
    assert report.block_ratio == pytest.approx(0.5)
    torch.testing.assert_close(logits(small, tokens), expected, rtol=0, atol=1e-6)


def output_error(tiny_opt, tokens, intercept):
    """Mean squared change of the first layer's output, MLP alone compressed."""
    dense = tiny_opt(num_hidden_layers=1).double()
    reference = copy.deepcopy(dense)
    small, _ = compress(dense, tokens, ratio=0.3, modules=("mlp",), intercept=intercept)
    outputs = [m(tokens, output_hidden_states=True).hidden_states[-1] for m in (reference.model, small.model)]
    change = outputs[0] - outputs[1]
    return change.square().mean().item(), change.mean((0, 1)).abs().max().item()


def test_an_intercept_removes_the_mean_error(tiny_opt, tokens):
    class NoNorm(torch.nn.Identity):
        pass

    def build(**changes):
        model = tiny_opt(**changes)
        model.model.decoder.final_layer_norm = NoNorm()
        return model

    with torch.no_grad():
        plain, plain_mean = output_error(build, tokens, False)
        better, mean = output_error(build, tokens, True)
    assert plain_mean > 1e-3
    assert mean < 1e-9
    assert better < plain


def test_an_intercept_needs_a_bias(tiny_llama, tokens):
    with pytest.raises(ModegptError, match="no bias"):
        compress(tiny_llama(), tokens, ratio=0.3, intercept=True)


def test_an_intercept_needs_the_mlp(tiny_opt, tokens):
    with pytest.raises(ModegptError, match="mlp is not among the modules"):
        compress(tiny_opt(), tokens, ratio=0.1, intercept=True, modules=("value",))


@pytest.mark.parametrize("modules", [(), ("mlp", "mlp"), ("mlp", "norm")], ids=str)
def test_modules_are_named_once_and_known(tiny_opt, tokens, modules):
    with pytest.raises(ModegptError, match="modules are one or more of"):
        compress(tiny_opt(), tokens, ratio=0.1, modules=modules)


def test_a_module_that_cannot_bear_the_ratio_says_what_it_can(tiny_opt, tokens):
    with pytest.raises(ModegptError, match=r"value alone cannot bear this ratio: at most 27\.3%"):
        compress(tiny_opt(), tokens, ratio=0.4, modules=("value",))


def test_without_biases_it_is_no_opt(tiny_opt):
    with pytest.raises(ModegptError, match=r"no part 'fc1.bias'"):
        family_of(tiny_opt(enable_bias=False))


def test_a_base_model_is_refused(tiny_opt):
    with pytest.raises(ModegptError, match="OPTModel"):
        family_of(OPTModel(tiny_opt().config))


def test_a_model_taken_apart_is_refused(tiny_opt, tokens):
    dense = tiny_opt()
    compress(dense, tokens, ratio=0.3)
    with pytest.raises(ModegptError, match="apart already"):
        compress(dense, tokens, ratio=0.3)


def test_padding_counts_nowhere(tiny_opt, tokens):
    """Left padding, the values' bias and the positions included, leaves the compressed weights as they were."""
    plain, _ = compress(tiny_opt().double(), tokens, ratio=0.3)
    pad = torch.zeros(6, 5, dtype=torch.int64)
    data = {"input_ids": torch.cat([pad, tokens], 1), "attention_mask": torch.cat([pad, torch.ones_like(tokens)], 1)}
    padded, _ = compress(tiny_opt().double(), data, ratio=0.3)
    for one, other in zip(plain.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
