"""Llamas with something more: windows (Qwen2), and norms of queries and keys (Qwen3)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen2ForCausalLM, Qwen3ForCausalLM

from modegpt.errors import ModegptError
from modegpt.families import attributes
from modegpt.families.base import Decomposed
from modegpt.families.llama import ATTENTION, PARTS, Llama
from modegpt.modeling import (
    ModeGPTQwen2Config,
    ModeGPTQwen2ForCausalLM,
    ModeGPTQwen3Config,
    ModeGPTQwen3ForCausalLM,
)


class Qwen2(Llama):
    """Qwen2 and 2.5 with a sliding window, and what is rewritten as one; without a window a Qwen2 is a Llama."""

    layout = "llama with windows"
    model_class = Qwen2ForCausalLM
    compressed = (ModeGPTQwen2Config, ModeGPTQwen2ForCausalLM)
    entries = attributes.LLAMA | attributes.WINDOWS

    def biased(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ATTENTION[:3]

    def plain_state(self, layer: nn.Module) -> dict[str, Tensor]:
        if layer.self_attn.o_proj.bias.any():  # where the biases of the values went
            raise ModegptError("a compressed Qwen2 with a window has no plain form: its attention's output has a bias")
        return super().plain_state(layer)


class Qwen3(Llama):
    """Qwen3: q = norm(W_q x) g over the dims of a head, then rotary, and the same for keys.

    Dims are selected by what attention compares, after norm and rotation. The norm of the kept dims differs from that
    of all, so the ratio of the two, one calibrated number a head, is folded into the norm's weight (heads, rank): of
    the ways that add no parameter the best where at least half of the dims stay, see examples/query_key_norms.py.
    """

    layout = "llama with query-key norms"
    query_key_norms = "head"
    model_class = Qwen3ForCausalLM
    compressed = (ModeGPTQwen3Config, ModeGPTQwen3ForCausalLM)
    entries = attributes.LLAMA | attributes.WINDOWS
    parts = PARTS | {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}

    def biased(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ATTENTION * config.attention_bias

    def tensors(self, layer: nn.Module, decomposed: Decomposed) -> dict[str, Tensor]:
        attention, dims = layer.self_attn, decomposed.dims
        heads, group = len(dims), attention.num_key_value_groups

        def kept(norm: nn.Module, gain: Tensor | None) -> Tensor:
            """(kv_heads, heads of each) gains -> the norm's weight of every head, (heads, rank)."""
            return (norm.weight[dims][:, None] * gain[..., None]).flatten(0, 1)

        ones = torch.ones(heads, group, device=dims.device)
        query, key = (decomposed.query_gain, decomposed.key_gain)
        return super().tensors(layer, decomposed) | {
            "self_attn.q_norm.weight": kept(attention.q_norm, ones if query is None else query),
            "self_attn.k_norm.weight": kept(attention.k_norm, (ones[:, 0] if key is None else key)[:, None]),
        }

    def plain_state(self, layer: nn.Module) -> dict[str, Tensor]:
        attention, state = layer.self_attn, layer.state_dict()
        if attention.q_norm.weight.shape[-1] != attention.head_dim:
            raise ModegptError(
                "a Qwen3 whose query-key dims shrank has no plain form, since its heads share one norm: compress it "
                "with --modules value,mlp for one"
            )
        norms = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
        return state | {name: state[name][0] for name in norms}  # at full rank all heads have the same
