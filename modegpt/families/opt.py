"""The OPT family: plain MLP, biases everywhere, learned positions (no rotation), multi-head attention."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import OPTForCausalLM, PreTrainedConfig, PreTrainedModel

from modegpt.allocate import LayerShape, Ranks
from modegpt.families import attributes
from modegpt.families.base import (
    Decomposed,
    Family,
    FreeMatrices,
    Places,
    Tap,
    check_layers,
    derived_config,
    fill_layer,
    first_dims,
    in_heads,
    rank_lists,
)
from modegpt.modeling import ModeGPTOPTConfig, ModeGPTOPTForCausalLM

LINEARS = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2")
PARTS = {
    f"{name}.{kind}" for name in (*LINEARS, "self_attn_layer_norm", "final_layer_norm") for kind in ("weight", "bias")
}


class OPT(Family):
    """OPT from 125M to 66B; the 350M's norms after the blocks and its narrow embeddings change nothing here."""

    layout = "opt"
    rotary = False
    linears = LINEARS
    up = ("fc1",)
    mlp_size = "ffn_dim"
    outputs = ("self_attn.out_proj", "fc2")
    model_class = OPTForCausalLM

    def check(self, model: PreTrainedModel) -> None:
        check_layers(self, model, PARTS)
        attributes.check_attributes(model.config, attributes.OPT)

    def down_bias(self, config: PreTrainedConfig) -> bool:
        return True

    def learned_positions(self, config: PreTrainedConfig) -> int:
        return config.max_position_embeddings

    def norms_first(self, config: PreTrainedConfig) -> bool:
        first = config.do_layer_norm_before and not config._remove_final_layer_norm
        return first and config.word_embed_proj_dim == config.hidden_size

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.model.decoder.layers

    def shape(self, model: PreTrainedModel) -> LayerShape:
        width, dim = model.config.hidden_size, model.config.hidden_size // model.config.num_attention_heads
        return LayerShape(
            query_key=dim,
            value=dim,
            mlp=model.config.ffn_dim,
            query_key_cost=2 * model.config.hidden_size * model.config.num_attention_heads,
            value_cost=2 * model.config.hidden_size * model.config.num_attention_heads,
            mlp_cost=2 * width,
            pair=1,
        )

    def taps(self, layer: nn.Module) -> dict[str, Tap]:
        return {"mlp": (layer.fc2, "input"), "heads": (layer.self_attn, "heads")}

    def head_states(self, layer: nn.Module, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        attention, value = layer.self_attn, seen["value"]
        query = seen["query"] / attention.scaling  # which it applies beforehand
        return query, seen["key"], value - attention.v_proj.bias.view(value.shape[1], 1, -1)

    def matrices(self, layer: nn.Module) -> FreeMatrices:
        attention, width = layer.self_attn, layer.self_attn.embed_dim
        heads, dim = attention.num_heads, attention.head_dim
        return FreeMatrices(
            down=layer.fc2.weight.T,
            value=attention.v_proj.weight.view(heads, dim, width).mT,
            output=attention.out_proj.weight.T.reshape(heads, 1, dim, width),
        )

    def shell(self, model: PreTrainedModel, ranks: list[Ranks]) -> PreTrainedModel:
        config = derived_config(ModeGPTOPTConfig, model, **rank_lists(ranks))
        with torch.device("meta"):
            shell = ModeGPTOPTForCausalLM(config).to(model.dtype).eval()
        shell.generation_config, shell.lm_head = model.generation_config, model.lm_head
        for name, module in model.model.decoder.named_children():
            if name != "layers":
                setattr(shell.model.decoder, name, module)
        return shell

    def fill(self, shell_layer: nn.Module, layer: nn.Module, decomposed: Decomposed) -> None:
        attention, channels, new = layer.self_attn, decomposed.channels, decomposed.matrices
        heads, dim, width = attention.num_heads, attention.head_dim, attention.embed_dim
        head = torch.arange(heads, device=decomposed.dims.device)[:, None]

        def shrink(linear: nn.Linear, solved: Tensor | None) -> tuple[Tensor, Tensor]:
            weight, bias = linear.weight.view(heads, dim, width), linear.bias.view(heads, dim)
            if solved is None:
                return weight[head, decomposed.dims].reshape(-1, width), bias[head, decomposed.dims].flatten()
            weight, bias = (solved.mT @ t.to(solved) for t in (weight, bias[..., None]))
            return weight.reshape(-1, width), bias.flatten()

        maps = decomposed.query_key or (None, None)
        query, query_bias = shrink(attention.q_proj, maps[0])
        key, key_bias = shrink(attention.k_proj, maps[1])
        # attention weights sum to one, so the values' bias adds the same W_O b_V to every token
        out, value_bias = attention.out_proj, attention.v_proj.bias
        output_bias = out.bias.double() + out.weight.double() @ value_bias.double()
        down_bias = layer.fc2.bias if decomposed.down_shift is None else layer.fc2.bias + decomposed.down_shift
        state = {
            "self_attn_layer_norm.weight": layer.self_attn_layer_norm.weight,
            "self_attn_layer_norm.bias": layer.self_attn_layer_norm.bias,
            "final_layer_norm.weight": layer.final_layer_norm.weight,
            "final_layer_norm.bias": layer.final_layer_norm.bias,
            "self_attn.q_proj.weight": query,
            "self_attn.q_proj.bias": query_bias,
            "self_attn.k_proj.weight": key,
            "self_attn.k_proj.bias": key_bias,
            "self_attn.v_proj.weight": new.value.mT.reshape(-1, width),
            "self_attn.out_proj.weight": new.output.reshape(-1, width).T,
            "self_attn.out_proj.bias": output_bias,
            "fc1.weight": layer.fc1.weight[channels],
            "fc1.bias": layer.fc1.bias[channels],
            "fc2.weight": new.down.T,
            "fc2.bias": down_bias,
        }
        fill_layer(shell_layer, state, attention.q_proj.weight.dtype)

    def places(self, layer: nn.Module) -> Places:
        attention, channels = layer.self_attn, torch.arange(layer.fc2.in_features)
        # nothing rotates, so the query-key dims may come first, whichever were kept
        query_key = in_heads(first_dims(attention.q_proj.out_features, attention.num_heads), attention.head_dim)
        value = in_heads(first_dims(attention.v_proj.out_features, attention.num_heads), attention.head_dim)
        return {
            "self_attn.q_proj": (0, query_key),
            "self_attn.k_proj": (0, query_key),
            "self_attn.v_proj": (0, value),
            "self_attn.out_proj": (1, value),
            "fc1": (0, channels),
            "fc2": (1, channels),
        }
