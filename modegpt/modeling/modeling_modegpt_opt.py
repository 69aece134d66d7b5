"""An OPT whose layers have sizes of their own: the checkpoint format of a model compressed by MoDeGPT.

This file is made to travel with a checkpoint, so it imports torch and transformers only. It calls the stock
constructor and swaps in the shrunk modules, with the sizes that the config lists for each layer.
"""

from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM, OPTModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.opt.modeling_opt import OPTAttention, eager_attention_forward

ANY_HEAD_DIM = ("eager", "sdpa", "flex_attention")  # implementations that take values of another size than keys


class ModeGPTOPTConfig(OPTConfig):
    """An OPTConfig plus the ranks of every layer.

    `hidden_size`, `num_attention_heads` and `ffn_dim` stay those of the dense model: the softmax scale
    1/sqrt(hidden_size / num_attention_heads) comes from the original head.

    Args:
        query_key_ranks: query-key dims kept per head, one entry a layer.
        value_ranks: value dims kept per head, one entry a layer.
        mlp_ranks: MLP channels kept, one entry a layer.
    """

    model_type = "modegpt_opt"

    # plain annotations with defaults: OPTConfig is a dataclass in transformers >= 5.4
    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None


class ModeGPTOPTAttention(OPTAttention):
    """Attention whose query-key and value dims per head are smaller than the head's original dims.

    `v_proj` has no bias: attention weights sum to one, so it has been folded into the bias of `out_proj`.
    """

    def __init__(self, config: ModeGPTOPTConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        query_key, value = config.query_key_ranks[layer_idx], config.value_ranks[layer_idx]
        width, heads = config.hidden_size, config.num_attention_heads
        self.q_proj = nn.Linear(width, heads * query_key)
        self.k_proj = nn.Linear(width, heads * query_key)
        self.v_proj = nn.Linear(width, heads * value, bias=False)
        self.out_proj = nn.Linear(heads * value, width)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values=None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        batch, tokens, _ = hidden_states.shape
        split = (batch, tokens, self.num_heads, -1)
        query = (self.q_proj(hidden_states) * self.scaling).view(split).transpose(1, 2)
        key = self.k_proj(hidden_states).view(split).transpose(1, 2)
        value = self.v_proj(hidden_states).view(split).transpose(1, 2)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        rank, value_rank = query.shape[-1], value.shape[-1]
        # flash kernels want one head dim for all three (on a CPU sdpa is one, worth it for many queries), other
        # programs the config's: zeros change no output
        on_cpu = implementation == "sdpa" and rank != value_rank and tokens > 1 and query.device.type == "cpu"
        if on_cpu or implementation not in ANY_HEAD_DIM:
            flash = on_cpu or implementation.startswith("flash")
            common = max(rank, value_rank) if flash else self.head_dim
            query, key = (nn.functional.pad(t, (0, common - rank)) for t in (query, key))
            value = nn.functional.pad(value, (0, common - value_rank))
        dropout = self.dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **kwargs)
        output = output.reshape(batch, tokens, self.num_heads, -1)[..., :value_rank]  # some give the heads joined
        return self.out_proj(output.flatten(2)), weights


class ModeGPTOPTModel(OPTModel):
    """`OPTModel` with the layers that the config's ranks describe."""

    config_class = ModeGPTOPTConfig

    def __init__(self, config: ModeGPTOPTConfig):
        for name in ("query_key_ranks", "value_ranks", "mlp_ranks"):
            sizes, layers = getattr(config, name), config.num_hidden_layers
            listed = isinstance(sizes, list | tuple) and len(sizes) == layers
            if not listed or not all(type(size) is int and size > 0 for size in sizes):
                raise ValueError(f"config.{name} must list one positive integer for each of {layers} layers")
        super().__init__(config)
        for index, layer in enumerate(self.decoder.layers):
            layer.self_attn = ModeGPTOPTAttention(config, index)
            layer.fc1 = nn.Linear(config.hidden_size, config.mlp_ranks[index])
            layer.fc2 = nn.Linear(config.mlp_ranks[index], config.hidden_size)
        self.post_init()


class ModeGPTOPTForCausalLM(OPTForCausalLM):
    """`OPTForCausalLM` around a `ModeGPTOPTModel`."""

    config_class = ModeGPTOPTConfig

    def __init__(self, config: ModeGPTOPTConfig):
        super().__init__(config)
        self.model = ModeGPTOPTModel(config)
        # vLLM and TGI build the base model, and a head of their own
        base = {"AutoModel": f"{ModeGPTOPTModel.__module__.rpartition('.')[-1]}.{ModeGPTOPTModel.__name__}"}
        config.auto_map = (getattr(config, "auto_map", None) or {}) | base
        self.post_init()
