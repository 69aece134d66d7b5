"""A Llama or an OPT with a narrower residual stream: the checkpoint format of a model compressed by SliceGPT.

This file is made to travel with a checkpoint, so it imports torch and transformers only. It calls the stock
constructor and swaps in what touches the residual stream, `config.sliced_size` wide; the heads keep their sizes.
Every block reads the stream in a basis of its own (arXiv 2401.15024, figure 4): the shortcut matrices carry the
residual from one basis to the next.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTLearnedPositionalEmbedding


class SliceGPTLlamaConfig(LlamaConfig):
    """A LlamaConfig plus `sliced_size`, the width of the residual stream; `hidden_size` stays the dense model's."""

    model_type = "slicegpt_llama"
    base_model_tp_plan = None  # the stock plan knows no shortcuts

    # plain annotations with defaults: LlamaConfig is a dataclass in transformers >= 5.4
    sliced_size: int | None = None


class SliceGPTOPTConfig(OPTConfig):
    """An OPTConfig plus `sliced_size`, the width of the residual stream; `hidden_size` stays the dense model's."""

    model_type = "slicegpt_opt"

    sliced_size: int | None = None
    tie_word_embeddings: bool = False


class SlicedRMSNorm(nn.Module):
    """RMS norm without a scale: x / sqrt(sum(x^2) / hidden_size + eps), for x (..., sliced_size).

    The mean is over the original width, since a sliced vector stands for a full one whose other entries are small.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        mean_square = wide.pow(2).sum(-1, keepdim=True) / self.hidden_size
        return (wide * torch.rsqrt(mean_square + self.eps)).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}"


def _reads(module: nn.Module, width: int, *names: str) -> None:
    """Let these linear maps of the module read a stream of this width."""
    for name in names:
        linear = getattr(module, name)
        setattr(module, name, nn.Linear(width, linear.out_features, bias=linear.bias is not None))


def _writes(module: nn.Module, width: int, name: str) -> None:
    """Let this linear map of the module write to a stream of this width."""
    linear = getattr(module, name)
    setattr(module, name, nn.Linear(linear.in_features, width, bias=linear.bias is not None))


def _check(config: LlamaConfig | OPTConfig) -> None:
    width = config.sliced_size
    if type(width) is not int or not 0 < width <= config.hidden_size:
        raise ValueError(f"config.sliced_size must be an integer from 1 to hidden_size {config.hidden_size}")
    if config.tie_word_embeddings:
        raise ValueError("sliced embeddings and head have different bases: config.tie_word_embeddings must be false")


class SliceGPTLlamaDecoderLayer(LlamaDecoderLayer):
    """The stock layer on a narrower stream, with a shortcut matrix on each of its two residuals."""

    def __init__(self, config: SliceGPTLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width = config.sliced_size
        self.input_layernorm = SlicedRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SlicedRMSNorm(config.hidden_size, config.rms_norm_eps)
        _reads(self.self_attn, width, "q_proj", "k_proj", "v_proj")
        _writes(self.self_attn, width, "o_proj")
        _reads(self.mlp, width, "gate_proj", "up_proj")
        _writes(self.mlp, width, "down_proj")
        self.attention_shortcut = nn.Linear(width, width, bias=False)
        self.mlp_shortcut = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + attended
        return self.mlp_shortcut(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))


class SliceGPTLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with a residual stream that is `config.sliced_size` wide."""

    config_class = SliceGPTLlamaConfig
    _no_split_modules: ClassVar[list[str]] = ["SliceGPTLlamaDecoderLayer"]

    def __init__(self, config: SliceGPTLlamaConfig):
        _check(config)
        super().__init__(config)
        width, layers = config.sliced_size, range(config.num_hidden_layers)
        self.model.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.model.layers = nn.ModuleList(SliceGPTLlamaDecoderLayer(config, index) for index in layers)
        self.model.norm = SlicedRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()


class SliceGPTOPTDecoderLayer(OPTDecoderLayer):
    """The stock layer on a narrower stream, with a shortcut matrix on each of its two residuals."""

    def __init__(self, config: SliceGPTOPTConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width = config.sliced_size
        # the dense model's LayerNorms, 1e-5 throughout: their mean, scale and bias are in the weights around them
        self.self_attn_layer_norm = SlicedRMSNorm(config.hidden_size, self.self_attn_layer_norm.eps)
        self.final_layer_norm = SlicedRMSNorm(config.hidden_size, self.final_layer_norm.eps)
        _reads(self.self_attn, width, "q_proj", "k_proj", "v_proj")
        _writes(self.self_attn, width, "out_proj")
        _reads(self, width, "fc1")
        _writes(self, width, "fc2")
        self.attention_shortcut = nn.Linear(width, width, bias=False)
        self.mlp_shortcut = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.self_attn_layer_norm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + self._drop(attended)
        found = self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(hidden_states))))
        return self.mlp_shortcut(hidden_states) + self._drop(found)

    def _drop(self, states: Tensor) -> Tensor:
        return nn.functional.dropout(states, p=self.dropout, training=self.training)


class SliceGPTOPTForCausalLM(OPTForCausalLM):
    """`OPTForCausalLM` with a residual stream that is `config.sliced_size` wide, for OPTs that normalise first.

    The head has a bias, unlike the stock one's: that of the final norm, which no longer has any.
    """

    config_class = SliceGPTOPTConfig
    _no_split_modules: ClassVar[list[str]] = ["SliceGPTOPTDecoderLayer"]

    def __init__(self, config: SliceGPTOPTConfig):
        _check(config)
        super().__init__(config)
        width, layers, decoder = config.sliced_size, range(config.num_hidden_layers), self.model.decoder
        decoder.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        decoder.embed_positions = OPTLearnedPositionalEmbedding(config.max_position_embeddings, width)
        decoder.layers = nn.ModuleList(SliceGPTOPTDecoderLayer(config, index) for index in layers)
        decoder.final_layer_norm = SlicedRMSNorm(config.hidden_size, decoder.final_layer_norm.eps)
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.post_init()
