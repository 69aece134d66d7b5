"""The Llama family: gated MLP, rotary pairs (i, i + d/2), grouped or multi-head attention, with or without biases."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

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
from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
LINEARS = (*ATTENTION, *MLP)
PARTS = {f"{name}.weight" for name in (*LINEARS, "input_layernorm", "post_attention_layernorm")}


def kept_rows(rows: Tensor, dims: Tensor, head_dim: int) -> Tensor:
    """Of the rows (kv_heads * heads of each * head_dim, ...) those of the kept dims (kv_heads, rank) of each head."""
    rows = rows.view(len(dims), -1, head_dim, *rows.shape[1:])
    heads = torch.arange(len(dims), device=dims.device)[:, None]
    # (kv_heads, rank, heads of each, ...): advanced indices around a slice move to the front
    return rows[heads, :, dims].transpose(1, 2).flatten(0, 2)


class Llama(Family):
    """Llama 1, 2, 3 and every checkpoint that loads as a `LlamaForCausalLM`."""

    layout = "llama"
    rotary = True
    linears = LINEARS
    up = ("mlp.gate_proj", "mlp.up_proj")
    mlp_size = "intermediate_size"
    outputs = ("self_attn.o_proj", "mlp.down_proj")
    model_class = LlamaForCausalLM
    compressed: tuple[type[PreTrainedConfig], type[PreTrainedModel]] = (ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM)
    entries = attributes.LLAMA  # of the config, that this family takes care of
    parts = PARTS

    def check(self, model: PreTrainedModel) -> None:
        check_layers(self, model, self.parts | {f"{name}.bias" for name in self.biased(model.config)})
        attributes.check_attributes(model.config, self.entries)

    def biased(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """The linear maps that have a bias."""
        return ATTENTION * config.attention_bias + MLP * config.mlp_bias

    def down_bias(self, config: PreTrainedConfig) -> bool:
        return MLP[-1] in self.biased(config)

    def learned_positions(self, config: PreTrainedConfig) -> None:
        return None

    def norms_first(self, config: PreTrainedConfig) -> bool:
        return True

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.model.layers

    def shape(self, model: PreTrainedModel) -> LayerShape:
        config = model.config
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_dim = config.hidden_size * (config.num_attention_heads + config.num_key_value_heads)
        return LayerShape(
            query_key=dim,
            value=dim,
            mlp=config.intermediate_size,
            query_key_cost=per_dim,
            value_cost=per_dim,
            mlp_cost=3 * config.hidden_size,
        )

    def taps(self, layer: nn.Module) -> dict[str, Tap]:
        taps: dict[str, Tap] = {"mlp": (layer.mlp.down_proj, "input"), "heads": (layer.self_attn, "heads")}
        if self.query_key_norms:
            taps["query_projected"] = (layer.self_attn.q_proj, "output")
            taps["key_projected"] = (layer.self_attn.k_proj, "output")
        return taps

    def head_states(self, layer: nn.Module, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        bias, value = layer.self_attn.v_proj.bias, seen["value"]
        return seen["query"], seen["key"], value if bias is None else value - bias.view(value.shape[1], 1, -1)

    def matrices(self, layer: nn.Module) -> FreeMatrices:
        attention, width = layer.self_attn, layer.self_attn.q_proj.in_features
        d, group = attention.head_dim, attention.num_key_value_groups
        return FreeMatrices(
            down=layer.mlp.down_proj.weight.T,
            value=attention.v_proj.weight.view(-1, d, width).mT,
            output=attention.o_proj.weight.T.reshape(-1, group, d, width),
            query_key=(attention.q_proj.weight.T, attention.k_proj.weight.T),
        )

    def shell(self, model: PreTrainedModel, ranks: list[Ranks]) -> PreTrainedModel:
        config_class, model_class = self.compressed
        biased = self.biased(model.config)  # whatever else the config says, if its class does not read that
        biases = {"attention_bias": ATTENTION[0] in biased, "mlp_bias": MLP[0] in biased}
        config = derived_config(config_class, model, **rank_lists(ranks), **biases)
        with torch.device("meta"):
            shell = model_class(config).to(model.dtype).eval()
        shell.generation_config = model.generation_config
        shell.lm_head, shell.model.norm = model.lm_head, model.model.norm
        shell.model.embed_tokens, shell.model.rotary_emb = model.model.embed_tokens, model.model.rotary_emb
        return shell

    def fill(self, shell_layer: nn.Module, layer: nn.Module, decomposed: Decomposed) -> None:
        fill_layer(shell_layer, self.tensors(layer, decomposed), layer.self_attn.q_proj.weight.dtype)

    def tensors(self, layer: nn.Module, decomposed: Decomposed) -> dict[str, Tensor]:
        """Of the compressed layer, by name."""
        attention, mlp, channels, dims = layer.self_attn, layer.mlp, decomposed.channels, decomposed.dims
        width, d, group = attention.q_proj.in_features, attention.head_dim, attention.num_key_value_groups
        new, norms = decomposed.matrices, (name for name, _ in layer.named_parameters() if "layernorm" in name)
        state = {name: layer.get_parameter(name) for name in norms} | {
            "self_attn.q_proj.weight": kept_rows(attention.q_proj.weight, dims, d),
            "self_attn.k_proj.weight": kept_rows(attention.k_proj.weight, dims, d),
            "self_attn.v_proj.weight": new.value.mT.reshape(-1, width),
            "self_attn.o_proj.weight": new.output.reshape(-1, width).T,
            "self_attn.rotary_index": dims,
            "mlp.gate_proj.weight": mlp.gate_proj.weight[channels],
            "mlp.up_proj.weight": mlp.up_proj.weight[channels],
            "mlp.down_proj.weight": new.down.T,
        }
        if decomposed.shared:
            project, both = decomposed.shared
            query, key = both.T.split([attention.q_proj.out_features, attention.k_proj.out_features])
            state |= {f"self_attn.{name}_proj.weight": t for name, t in (("q", query), ("k", key), ("qk", project.T))}
        if attention.v_proj.bias is not None:
            # attention weights sum to one, so the values' bias adds the same W_O b_V to every token
            shared = attention.v_proj.bias.double().view(-1, 1, d).expand(-1, group, -1).flatten()
            own = 0 if attention.o_proj.bias is None else attention.o_proj.bias.double()
            state |= {
                "self_attn.q_proj.bias": kept_rows(attention.q_proj.bias, dims, d),
                "self_attn.k_proj.bias": kept_rows(attention.k_proj.bias, dims, d),
                "self_attn.o_proj.bias": own + attention.o_proj.weight.double() @ shared,
            }
        if mlp.down_proj.bias is not None:
            shift = decomposed.down_shift
            state |= {
                "mlp.gate_proj.bias": mlp.gate_proj.bias[channels],
                "mlp.up_proj.bias": mlp.up_proj.bias[channels],
                "mlp.down_proj.bias": mlp.down_proj.bias if shift is None else mlp.down_proj.bias + shift,
            }
        return state

    def places(self, layer: nn.Module) -> Places:
        attention, query_key = layer.self_attn, layer.self_attn.rotary_index.cpu()
        group, value = attention.num_key_value_groups, first_dims(attention.v_proj.out_features, len(query_key))
        channels = torch.arange(layer.mlp.down_proj.in_features)
        return {
            "self_attn.q_proj": (0, in_heads(query_key.repeat_interleave(group, 0), attention.head_dim)),
            "self_attn.k_proj": (0, in_heads(query_key, attention.head_dim)),
            "self_attn.v_proj": (0, in_heads(value, attention.head_dim)),
            "self_attn.o_proj": (1, in_heads(value.repeat_interleave(group, 0), attention.head_dim)),
            "mlp.gate_proj": (0, channels),
            "mlp.up_proj": (0, channels),
            "mlp.down_proj": (1, channels),
        }

    def plain_state(self, layer: nn.Module) -> dict[str, Tensor]:
        state = layer.state_dict()
        shared = state.pop("self_attn.qk_proj.weight", None)
        if shared is not None:  # a plain layer has no such map: the two become one again
            for name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
                state[name] = (state[name].double() @ shared.double()).to(shared.dtype)
        return state
