"""The Llama family: gated MLP, rotary pairs (i, i + d/2), grouped or multi-head attention, no biases."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modegpt.allocate import LayerShape, Ranks
from modegpt.families.base import Decomposed, Family, FreeMatrices, Tap, check_layers, derived_config, rank_lists
from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM

LINEARS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
PARTS = {f"{name}.weight" for name in (*LINEARS, "input_layernorm", "post_attention_layernorm")}


class Llama(Family):
    """Llama 1, 2, 3 and every checkpoint that loads as a `LlamaForCausalLM` without biases."""

    layout = "llama"
    rotary = True
    down_bias = False
    linears = LINEARS
    up = ("mlp.gate_proj", "mlp.up_proj")
    model_class = LlamaForCausalLM

    def check(self, model: PreTrainedModel) -> None:
        check_layers(self, model, PARTS)

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.model.layers

    def shape(self, model: PreTrainedModel) -> LayerShape:
        config = model.config
        per_dim = config.hidden_size * (config.num_attention_heads + config.num_key_value_heads)
        return LayerShape(
            query_key=config.head_dim,
            value=config.head_dim,
            mlp=config.intermediate_size,
            query_key_cost=per_dim,
            value_cost=per_dim,
            mlp_cost=3 * config.hidden_size,
        )

    def taps(self, layer: nn.Module) -> dict[str, Tap]:
        attention = layer.self_attn
        return {
            "mlp": (layer.mlp.down_proj, "input"),
            "query": (attention.q_proj, "output"),
            "key": (attention.k_proj, "output"),
            "value": (attention.v_proj, "output"),
        }

    def head_states(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, layer_kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *apply_rotary_pos_emb(query, key, *layer_kwargs["position_embeddings"]), value

    def matrices(self, layer: nn.Module) -> FreeMatrices:
        attention, width = layer.self_attn, layer.self_attn.q_proj.in_features
        d, group = attention.head_dim, attention.num_key_value_groups
        return FreeMatrices(
            down=layer.mlp.down_proj.weight.T,
            value=attention.v_proj.weight.view(-1, d, width).mT,
            output=attention.o_proj.weight.T.reshape(-1, group, d, width),
        )

    def shell(self, model: PreTrainedModel, ranks: list[Ranks]) -> PreTrainedModel:
        config = derived_config(ModeGPTLlamaConfig, model, **rank_lists(ranks))
        with torch.device("meta"):
            shell = ModeGPTLlamaForCausalLM(config).to(model.dtype).eval()
        shell.generation_config = model.generation_config
        shell.lm_head, shell.model.norm = model.lm_head, model.model.norm
        shell.model.embed_tokens, shell.model.rotary_emb = model.model.embed_tokens, model.model.rotary_emb
        return shell

    def fill(self, shell_layer: nn.Module, layer: nn.Module, decomposed: Decomposed) -> None:
        attention, channels, dims = layer.self_attn, decomposed.channels, decomposed.dims
        width, d, group = attention.q_proj.in_features, attention.head_dim, attention.num_key_value_groups
        new = decomposed.matrices

        query = attention.q_proj.weight.view(-1, group, d, width)
        key = attention.k_proj.weight.view(-1, d, width)
        heads = torch.arange(len(dims), device=dims.device)[:, None]
        state = {
            "input_layernorm.weight": layer.input_layernorm.weight,
            "post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
            # (kv_heads, rank, group, width): advanced indices around a slice move to the front
            "self_attn.q_proj.weight": query[heads, :, dims].transpose(1, 2).reshape(-1, width),
            "self_attn.k_proj.weight": key[heads, dims].reshape(-1, width),
            "self_attn.v_proj.weight": new.value.mT.reshape(-1, width),
            "self_attn.o_proj.weight": new.output.reshape(-1, width).T,
            "self_attn.rotary_index": dims,
            "mlp.gate_proj.weight": layer.mlp.gate_proj.weight[channels],
            "mlp.up_proj.weight": layer.mlp.up_proj.weight[channels],
            "mlp.down_proj.weight": new.down.T,
        }
        dtype = attention.q_proj.weight.dtype
        state = {name: (t.to(dtype) if t.is_floating_point() else t).detach().contiguous() for name, t in state.items()}
        shell_layer.load_state_dict(state, assign=True)
