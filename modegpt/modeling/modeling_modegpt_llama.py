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
        shared_ranks: rank of the one projection in front of all queries and keys, one entry a layer, 0 for none.
    """

    model_type = "modegpt_llama"
    base_model_tp_plan = None  # heads of different sizes do not shard by the stock plan

    # plain annotations with defaults: LlamaConfig is a dataclass in transformers >= 5.4
    query_key_ranks: list | None = None
    value_ranks: list | None = None
    mlp_ranks: list | None = None
    shared_ranks: list | None = None


class Fusible(nn.Module):
    """Linear maps of one input, the attributes `parts`, that `fuse` makes one product.

    `fused` is their weight and bias in one piece. The maps keep their parameters, as views of it.
    """

    parts: tuple[str, ...] = ()
    fused: tuple[Tensor, Tensor | None] | None = None

    def fuse(self) -> None:
        maps = [getattr(self, name) for name in self.parts]
        weight, bias = torch.cat([linear.weight.data for linear in maps]), None
        if any(linear.bias is not None for linear in maps):
            biases = (weight.new_zeros(m.out_features) if m.bias is None else m.bias.data for m in maps)
            bias = torch.cat(list(biases))
        sizes = [linear.out_features for linear in maps]
        for linear, rows in zip(maps, weight.split(sizes), strict=True):
            linear.weight.data = rows
        self.fused = weight, bias

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        if self.fused is not None:
            self.fuse()  # moved one by one, the parameters are views no more
        return self


class ModeGPTLlamaAttention(Fusible, LlamaAttention):
    """Attention whose query-key and value dims per head are smaller than the head's original dims.

    The buffer `rotary_index` (kv_heads, query_key_rank) holds the dims of the original head that were kept: cos
    and sin are gathered with it. Its first half are the lower dims of the rotary pairs, the second their partners.
    `v_proj` has no bias: attention weights sum to one, so it has been folded into the bias of `o_proj`. Where the
    config has a shared rank, `qk_proj` stands in front of `q_proj` and `k_proj`.
    """

    parts = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: ModeGPTLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        query_key, value = config.query_key_ranks[layer_idx], config.value_ranks[layer_idx]
        width, bias = config.hidden_size, config.attention_bias
        shared = (getattr(config, "shared_ranks", None) or {layer_idx: 0})[layer_idx]
        self.qk_proj = nn.Linear(width, shared, bias=False) if shared else nn.Identity()
        if shared:
            self.parts = ("q_proj", "k_proj")
        self.q_proj = nn.Linear(shared or width, heads * query_key, bias=bias)
        self.k_proj = nn.Linear(shared or width, kv_heads * query_key, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * value, bias=False)
        self.o_proj = nn.Linear(heads * value, width, bias=bias)
        pairs = torch.arange(query_key // 2)
        index = torch.cat([pairs, pairs + self.head_dim // 2]).expand(kv_heads, -1).clone()
        self.register_buffer("rotary_index", index)

    def queries_and_keys(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, heads * rank) each, before rotation."""
        shared = self.qk_proj(hidden_states)
        return self.q_proj(shared), self.k_proj(shared)

    def normed(self, queries_and_keys: Tensor) -> Tensor:
        """Both of one product, (batch, tokens, (heads + kv_heads) * rank), before rotation."""
        return queries_and_keys

    def fuse(self) -> None:
        super().fuse()
        pairs = self.rotary_index[:, : self.rotary_index.shape[1] // 2]
        self.turning = torch.cat([pairs.repeat_interleave(self.num_key_value_groups, 0), pairs]).flatten()

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate (batch, tokens, ..., 2, pairs) by the angles of the kept pairs, and join the heads.

        Four kernels and no copy: in prefill each pass over the queries counts, in decoding each launch. At full rank
        the roundings are those of the stock Llama.

        Returns:
            (batch, heads, tokens, rank).
        """
        rotated, crossed = states * cos, states * sin
        rotated.select(-2, 0).sub_(crossed.select(-2, 1))
        rotated.select(-2, 1).add_(crossed.select(-2, 0))
        return rotated.flatten(-2).flatten(2, -2).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, ...] | Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        batch, tokens, _ = hidden_states.shape
        kv_heads, group = self.config.num_key_value_heads, self.num_key_value_groups
        rank, value_rank = self.rotary_index.shape[-1], self.config.value_ranks[self.layer_idx]

        if self.fused is None:
            # the two dims of a pair turn by one angle, so half of the index is enough
            pairs = self.rotary_index[:, : rank // 2]
            cos, sin = (angle[..., pairs].unsqueeze(3).unsqueeze(3) for angle in position_embeddings)
            query, key = self.queries_and_keys(hidden_states)
            query = self._rotate(query.view(batch, tokens, kv_heads, group, 2, -1), cos, sin)
            key = self._rotate(key.view(batch, tokens, kv_heads, 1, 2, -1), cos, sin)
            value = self.v_proj(hidden_states)
        else:
            kept = position_embeddings[self.layer_idx] if tokens == 1 else position_embeddings[..., self.turning]
            cos, sin = kept.unflatten(-1, (-1, 1, rank // 2))
            states = nn.functional.linear(self.qk_proj(hidden_states), *self.fused)
            both, value = states.tensor_split([kv_heads * (group + 1) * rank], -1)
            value = value if "v_proj" in self.parts else self.v_proj(hidden_states)
            both = self._rotate(self.normed(both).unflatten(-1, (-1, 2, rank // 2)), cos, sin)
            query, key = both.split([kv_heads * group, kv_heads], 1)
        value = value.view(batch, tokens, kv_heads, value_rank).transpose(1, 2)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        # flash kernels want one head dim for all three (on a CPU sdpa is one, worth it for many queries), other
        # programs the config's: zeros change no output
        on_cpu = implementation == "sdpa" and rank != value_rank and tokens > 1 and query.device.type == "cpu"
        if on_cpu or implementation not in ANY_HEAD_DIM:
            flash = on_cpu or implementation.startswith("flash")
            common = max(rank, value_rank) if flash else self.head_dim
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


class ModeGPTLlamaMLP(Fusible, LlamaMLP):
    """The gated MLP with `mlp_ranks[layer_idx]` channels."""

    parts = ("gate_proj", "up_proj")

    def __init__(self, config: ModeGPTLlamaConfig, layer_idx: int):
        super().__init__(config)
        width, channels, bias = config.hidden_size, config.mlp_ranks[layer_idx], config.mlp_bias
        self.intermediate_size = channels
        self.gate_proj = nn.Linear(width, channels, bias=bias)
        self.up_proj = nn.Linear(width, channels, bias=bias)
        self.down_proj = nn.Linear(channels, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is None:
            return super().forward(x)
        gate, up = nn.functional.linear(x, *self.fused).chunk(2, -1)
        return self.down_proj(self.act_fn(gate) * up)


class KeptAngles(nn.Module):
    """cos and sin of the pairs that the layers keep, from the model's own rotary embedding.

    Args:
        rotary: gives cos and sin, (batch, tokens, head_dim).
        turning: for each layer the dims to take, of all queries and then of all keys.
    """

    def __init__(self, rotary: nn.Module, turning: list[Tensor]):
        super().__init__()
        self.rotary, self.sizes = rotary, [len(dims) for dims in turning]
        self.register_buffer("turning", torch.cat(turning), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, ...] | Tensor:
        """(2, batch, 1, dims) for each layer if there is one token; else all, as those of all layers are large."""
        angles = torch.stack(self.rotary(x, position_ids))
        return angles[..., self.turning].split(self.sizes, -1) if x.shape[1] == 1 else angles


class ShrunkForCausalLM:
    """What the compressed Llama and its relatives have more than the stock ones: a model with shrunk layers, `fuse`."""

    inner: type[nn.Module]

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = self.inner(config)
        name_base_model(config, self.inner)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids: Tensor, past_key_values=None, **kwargs) -> dict:
        """As the stock model's; but where a long rope (Phi-3) changes its angles, all that was cached is made again."""
        rope = self.config.rope_parameters
        if past_key_values is not None and rope["rope_type"] == "longrope":
            limit = rope["original_max_position_embeddings"]
            if 0 < past_key_values.get_seq_length() <= limit < input_ids.shape[1]:
                past_key_values, kwargs["next_sequence_length"] = None, None
        return super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)

    def fuse(self):
        """Make inference faster, in place: fewer and larger kernels. Returns the model.

        Queries, keys and values become one product, gate and up another. Norms are torch's own, and rotary angles are
        gathered once a token. Weights keep their names and take no more memory, so it still saves as before. It is
        frozen, and what replaces a map later (an adapter, a quantized one) is not seen: call this last.
        """
        model = self.model
        if isinstance(model.rotary_emb, KeptAngles):
            return self

        def fused(norm: nn.Module) -> nn.Module:
            own = nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, device="meta")
            own.weight = norm.weight
            return own

        self.requires_grad_(False)
        for layer in model.layers:
            layer.self_attn.fuse()
            layer.mlp.fuse()
            for name, module in list(layer.named_children()):
                if name.endswith("layernorm"):
                    setattr(layer, name, fused(module))
        model.norm = fused(model.norm)
        model.rotary_emb = KeptAngles(model.rotary_emb, [layer.self_attn.turning for layer in model.layers])
        return self


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
    shared = getattr(config, "shared_ranks", None)
    listed = shared is None or (isinstance(shared, list | tuple) and len(shared) == layers)
    if not listed or not all(type(size) is int and size >= 0 for size in shared or ()):
        raise ValueError(f"config.shared_ranks must list one integer, 0 or more, for each of {layers} layers")


class ShrunkLayers:
    """Mixed into a stock model, it gives each layer the attention and the MLP that the config's ranks describe."""

    attention: type[nn.Module]

    def __init__(self, config: LlamaConfig):
        check_ranks(config)
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = self.attention(config, index)
            layer.mlp = ModeGPTLlamaMLP(config, index)
        self.post_init()


class ModeGPTLlamaModel(ShrunkLayers, LlamaModel):
    """`LlamaModel` with the layers that the config's ranks describe."""

    config_class, attention = ModeGPTLlamaConfig, ModeGPTLlamaAttention


class ModeGPTLlamaForCausalLM(ShrunkForCausalLM, LlamaForCausalLM):
    """`LlamaForCausalLM` around a `ModeGPTLlamaModel`."""

    config_class, inner = ModeGPTLlamaConfig, ModeGPTLlamaModel
