"""A Qwen2, Qwen3 or OLMo 2 whose layers have sizes of their own: the checkpoint format of one compressed by MoDeGPT.

This file is made to travel with a checkpoint, so it imports torch, transformers and the file beside it only. Qwen2 is
a Llama with sliding windows, Qwen3 one with norms of queries and keys as well. OLMo 2 norms queries and keys too, all
heads together, and the outputs of attention and MLP instead of their inputs.
"""

import torch
from torch import Tensor, nn
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo2Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from .modeling_modegpt_llama import ModeGPTLlamaAttention, ShrunkForCausalLM, ShrunkLayers


class ModeGPTQwen2Config(Qwen2Config):
    """A Qwen2Config plus the ranks of every layer, as in `ModeGPTLlamaConfig`, and the dims of a head."""

    model_type = "modegpt_qwen2"
    base_model_tp_plan = None  # heads of different sizes do not shard by the stock plan

    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None
    shared_ranks: list | None = None
    head_dim: int | None = None
    attention_bias: bool = True
    mlp_bias: bool = False

    def __post_init__(self, **kwargs):
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class ModeGPTQwen3Config(Qwen3Config):
    """A Qwen3Config plus the ranks of every layer, as in `ModeGPTLlamaConfig`."""

    model_type = "modegpt_qwen3"
    base_model_tp_plan = None

    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None
    mlp_bias: bool = False


class ModeGPTOlmo2Config(Olmo2Config):
    """An Olmo2Config plus the ranks of every layer, as in `ModeGPTLlamaConfig`."""

    model_type = "modegpt_olmo2"
    base_model_tp_plan = None

    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None
    mlp_bias: bool = False


class ModeGPTQwen2Attention(ModeGPTLlamaAttention):
    """A compressed Llama's attention that knows whether its layer has a window."""

    def __init__(self, config: ModeGPTQwen2Config | ModeGPTQwen3Config, layer_idx: int):
        super().__init__(config, layer_idx)
        windowed = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if windowed else None

    def forward(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        return super().forward(*args, **kwargs, sliding_window=self.sliding_window)


class HeadRMSNorm(nn.Module):
    """RMS norm of each head's dims, with a weight of its own for each head: (..., heads * rank) -> the same."""

    def __init__(self, heads: int, rank: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, rank))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        heads = states.unflatten(-1, self.weight.shape).to(torch.float32)  # as the stock norm does
        heads = heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * heads.to(states.dtype)).flatten(-2)


class Normed:
    """Mixed into an attention: norms of the kept query-key dims; what these miss is folded into their weights."""

    def queries_and_keys(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        query, key = super().queries_and_keys(hidden_states)
        return self.q_norm(query), self.k_norm(key)

    def normed(self, queries_and_keys: Tensor) -> Tensor:
        sizes = [self.q_proj.out_features, self.k_proj.out_features]
        query, key = queries_and_keys.split(sizes, -1)
        return torch.cat([self.q_norm(query), self.k_norm(key)], -1)


class ModeGPTQwen3Attention(Normed, ModeGPTQwen2Attention):
    """Each head has a norm of its own."""

    def __init__(self, config: ModeGPTQwen3Config, layer_idx: int):
        super().__init__(config, layer_idx)
        rank, eps = config.query_key_ranks[layer_idx], config.rms_norm_eps
        self.q_norm = HeadRMSNorm(config.num_attention_heads, rank, eps)
        self.k_norm = HeadRMSNorm(config.num_key_value_heads, rank, eps)


class ModeGPTOlmo2Attention(Normed, ModeGPTLlamaAttention):
    """One stock norm spans the queries of all heads, another the keys."""

    def __init__(self, config: ModeGPTOlmo2Config, layer_idx: int):
        super().__init__(config, layer_idx)
        rank = config.query_key_ranks[layer_idx]
        eps = config.rms_norm_eps * self.head_dim / rank  # the same share as in a mean over all dims
        self.q_norm = Olmo2RMSNorm(config.num_attention_heads * rank, eps)
        self.k_norm = Olmo2RMSNorm(config.num_key_value_heads * rank, eps)

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super()._rotate(states, cos, sin).to(states.dtype)  # an OLMo 2 turns in float32


class ModeGPTQwen2Model(ShrunkLayers, Qwen2Model):
    """`Qwen2Model` with the layers that the config's ranks describe."""

    config_class, attention = ModeGPTQwen2Config, ModeGPTQwen2Attention


class ModeGPTQwen2ForCausalLM(ShrunkForCausalLM, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` around a `ModeGPTQwen2Model`."""

    config_class, inner = ModeGPTQwen2Config, ModeGPTQwen2Model


class ModeGPTQwen3Model(ShrunkLayers, Qwen3Model):
    """`Qwen3Model` with the layers that the config's ranks describe."""

    config_class, attention = ModeGPTQwen3Config, ModeGPTQwen3Attention


class ModeGPTQwen3ForCausalLM(ShrunkForCausalLM, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` around a `ModeGPTQwen3Model`."""

    config_class, inner = ModeGPTQwen3Config, ModeGPTQwen3Model


class ModeGPTOlmo2Model(ShrunkLayers, Olmo2Model):
    """`Olmo2Model` with the layers that the config's ranks describe."""

    config_class, attention = ModeGPTOlmo2Config, ModeGPTOlmo2Attention


class ModeGPTOlmo2ForCausalLM(ShrunkForCausalLM, Olmo2ForCausalLM):
    """`Olmo2ForCausalLM` around a `ModeGPTOlmo2Model`."""

    config_class, inner = ModeGPTOlmo2Config, ModeGPTOlmo2Model
