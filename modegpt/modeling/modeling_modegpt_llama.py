"""A Llama whose layers have sizes of their own: the checkpoint format of a model compressed by MoDeGPT.

This file is made to travel with a checkpoint, so it imports torch and transformers only. It calls the stock
constructor and swaps in the shrunk modules, with the sizes that the config lists for each layer.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    eager_attention_forward,
)

ANY_HEAD_DIM = ("eager", "sdpa", "flex_attention")  # implementations that take values of another size than keys


class ModeGPTLlamaConfig(LlamaConfig):
    """A LlamaConfig plus the ranks of every layer.

    `head_dim` and `intermediate_size` stay those of the dense model: the rotary frequencies and the softmax scale
    1/sqrt(head_dim) come from the original head.

    Args:
        query_key_ranks: query-key dims kept per head, one entry a layer, even.
        value_ranks: value dims kept per head, one entry a layer.
        mlp_ranks: MLP channels kept, one entry a layer.
    """

    model_type = "modegpt_llama"
    base_model_tp_plan = None  # heads of different sizes do not shard by the stock plan

    # plain annotations with defaults: LlamaConfig is a dataclass in transformers >= 5.4
    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None


class ModeGPTLlamaAttention(LlamaAttention):
    """Attention whose query-key and value dims per head are smaller than the head's original dims.

    The buffer `rotary_index` (kv_heads, query_key_rank) holds the dims of the original head that were kept: cos
    and sin are gathered with it. Its first half are the lower dims of the rotary pairs, the second their partners.
    `v_proj` has no bias: attention weights sum to one, so it has been folded into the bias of `o_proj`.
    """

    def __init__(self, config: ModeGPTLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        query_key, value = config.query_key_ranks[layer_idx], config.value_ranks[layer_idx]
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, heads * query_key, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * query_key, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * value, bias=False)
        self.o_proj = nn.Linear(heads * value, width, bias=bias)
        pairs = torch.arange(query_key // 2)
        index = torch.cat([pairs, pairs + self.head_dim // 2]).expand(kv_heads, -1).clone()
        self.register_buffer("rotary_index", index)

    def queries_and_keys(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, heads * rank) each, before rotation."""
        return self.q_proj(hidden_states), self.k_proj(hidden_states)

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate (batch, tokens, kv_heads, group, 2, pairs) by the angles of the kept pairs, and join the heads.

        Four kernels and no copy: in prefill each pass over the queries counts, in decoding each launch. At full rank
        the roundings are those of the stock Llama.

        Returns:
            (batch, heads, tokens, rank).
        """
        rotated, crossed = states * cos, states * sin
        rotated.select(4, 0).sub_(crossed.select(4, 1))
        rotated.select(4, 1).add_(crossed.select(4, 0))
        return rotated.flatten(4).flatten(2, 3).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        batch, tokens, _ = hidden_states.shape
        kv_heads, group = self.config.num_key_value_heads, self.num_key_value_groups
        rank, value_rank = self.rotary_index.shape[-1], self.config.value_ranks[self.layer_idx]

        # the two dims of a pair turn by one angle, so half of the index is enough
        pairs = self.rotary_index[:, : rank // 2]
        cos, sin = (angle[..., pairs].unsqueeze(3).unsqueeze(3) for angle in position_embeddings)
        query, key = self.queries_and_keys(hidden_states)
        query = self._rotate(query.view(batch, tokens, kv_heads, group, 2, -1), cos, sin)
        key = self._rotate(key.view(batch, tokens, kv_heads, 1, 2, -1), cos, sin)
        value = self.v_proj(hidden_states).view(batch, tokens, kv_heads, value_rank).transpose(1, 2)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        # flash kernels want one head dim for all three, other programs the config's: zeros change no output
        if implementation not in ANY_HEAD_DIM:
            common = max(rank, value_rank) if implementation.startswith("flash") else self.head_dim
            query, key = (nn.functional.pad(t, (0, common - rank)) for t in (query, key))
            value = nn.functional.pad(value, (0, common - value_rank))
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(batch, tokens, kv_heads * group, -1)[..., :value_rank]  # some give the heads joined
        return self.o_proj(output.flatten(2)), weights


class ModeGPTLlamaMLP(LlamaMLP):
    """The gated MLP with `mlp_ranks[layer_idx]` channels."""

    def __init__(self, config: ModeGPTLlamaConfig, layer_idx: int):
        super().__init__(config)
        width, channels, bias = config.hidden_size, config.mlp_ranks[layer_idx], config.mlp_bias
        self.intermediate_size = channels
        self.gate_proj = nn.Linear(width, channels, bias=bias)
        self.up_proj = nn.Linear(width, channels, bias=bias)
        self.down_proj = nn.Linear(channels, width, bias=bias)


def name_base_model(config: LlamaConfig, base: type) -> None:
    """Let the saved config name the base model too: vLLM and TGI build that one, and a head of their own."""
    own = {"AutoModel": f"{base.__module__.rpartition('.')[-1]}.{base.__name__}"}
    config.auto_map = (getattr(config, "auto_map", None) or {}) | own


def check_ranks(config: LlamaConfig) -> None:
    """Raise ValueError unless the config lists the ranks of every layer."""
    for name in ("query_key_ranks", "value_ranks", "mlp_ranks"):
        sizes, layers = getattr(config, name), config.num_hidden_layers
        listed = isinstance(sizes, list | tuple) and len(sizes) == layers
        if not listed or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"config.{name} must list one positive integer for each of {layers} layers")


class ModeGPTLlamaModel(LlamaModel):
    """`LlamaModel` with the layers that the config's ranks describe."""

    config_class = ModeGPTLlamaConfig

    def __init__(self, config: ModeGPTLlamaConfig):
        check_ranks(config)
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = ModeGPTLlamaAttention(config, index)
            layer.mlp = ModeGPTLlamaMLP(config, index)
        self.post_init()


class ModeGPTLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` around a `ModeGPTLlamaModel`."""

    config_class = ModeGPTLlamaConfig

    def __init__(self, config: ModeGPTLlamaConfig):
        super().__init__(config)
        self.model = ModeGPTLlamaModel(config)
        name_base_model(config, ModeGPTLlamaModel)
        self.post_init()
