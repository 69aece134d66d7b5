"""What vLLM's Transformers backend does with a compressed folder, after its documentation; vLLM itself was not run.

https://docs.vllm.ai/en/latest/models/supported_models.html#transformers: the class that `auto_map` names for AutoModel
is built from the config with parameters on the meta device, its linear maps are replaced, weights are loaded by name
into parameters and registered buffers, and attention is a function that wants one head size for all layers, the
config's, and gives the heads joined.
"""

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

pytestmark = pytest.mark.usefixtures("one_thread")


class Replicated(nn.Module):
    """Stands in for a linear map, with parameters of its own."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(linear.weight.shape), requires_grad=False)
        bias = nn.Parameter(torch.empty(linear.out_features), requires_grad=False)
        self.register_parameter("bias", None if linear.bias is None else bias)

    def forward(self, states):
        return nn.functional.linear(states, self.weight, self.bias)


def replace_linears(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Replicated(child))
        else:
            replace_linears(child)


def attention(sizes):
    """One layer's cache is as large as another's: heads of `sizes`' one entry; tokens come flat and leave flat."""

    def attend(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
        assert attention_instances[module.layer_idx] == "a cache"
        sizes.update(states.shape[-1] for states in (query, key, value))
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).reshape(query.shape[2], -1), None

    return attend


@torch.no_grad()
def test_a_serving_program_builds_loads_and_runs_the_folder(dense, small, tokens, tmp_path):
    expected = small(tokens[:1]).logits
    small.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= config.auto_map.keys()
    base = get_class_from_dynamic_module(config.auto_map["AutoModel"], str(tmp_path))
    assert base._supports_attention_backend
    sizes = set()
    AttentionInterface.register("served", attention(sizes))
    config._attn_implementation = "served"
    with accelerate.init_empty_weights(include_buffers=False):
        model = base._from_config(config)
    replace_linears(model)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(torch.empty(parameter.shape), requires_grad=False))
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = {name for name, _ in model.named_parameters()}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if not name.startswith("lm_head"):
            place = places[name.removeprefix("model.")]
            assert place.shape == tensor.shape
            place.copy_(tensor)
            wanted.discard(name.removeprefix("model."))
    assert not wanted
    hidden = model(
        input_ids=tokens[:1],
        position_ids=torch.arange(tokens.shape[1])[None],
        use_cache=False,
        attention_instances=dict.fromkeys(range(3), "a cache"),
        return_dict=False,
    )[0]
    torch.testing.assert_close(small.lm_head(hidden), expected, rtol=0, atol=1e-4)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert sizes == {head}
