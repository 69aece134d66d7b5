"""A compressed model as a plain Llama or OPT, for tools that know nothing else.

A stock config has one size for all layers, so what is smaller is padded with zeros, which change no logit:

- query-key dims return to their places in a head of the original size: the rotary frequencies depend on the places,
  the softmax scale on the size;
- value dims are padded to the original head as well, whose size is one number for queries, keys and values;
- MLP channels are padded to the widest layer's, so layers of one width need no padding.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.families import FAMILIES
from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTOPTConfig

NOT_STOCK = (
    *("query_key_ranks", "value_ranks", "mlp_ranks"),
    *("model_type", "architectures", "auto_map", "transformers_version"),
)
# For each shrunk linear map of a layer: the axis of its weight that shrank, and where its entries go in the stock one
Places = dict[str, tuple[int, Tensor]]


@dataclass(frozen=True)
class ExportReport:
    """Parameters of the block matrices: of the dense model, the compressed one, and the exported one."""

    dense: int
    compressed: int
    exported: int

    @property
    def saved(self) -> float:
        """Share of the dense matrices that the exported model does without."""
        return 1 - self.exported / self.dense

    @property
    def padding(self) -> float:
        """Share of the exported matrices that is zeros put in."""
        return 1 - self.compressed / self.exported

    def to_dict(self) -> dict[str, int | float]:
        """Everything as plain JSON types."""
        return asdict(self) | {"saved": self.saved, "padding": self.padding}

    def __str__(self) -> str:
        dense, compressed, exported = (count / 1e6 for count in (self.dense, self.compressed, self.exported))
        return (
            f"block parameters: {dense:.1f} M dense -> {compressed:.1f} M compressed -> {exported:.1f} M exported, "
            f"{self.saved:.1%} fewer than dense; {self.padding:.1%} of the exported ones are zeros that pad"
        )


def check_compressed(config: PreTrainedConfig) -> None:
    """Raise ModegptError unless this is the config of a compressed model."""
    if config.model_type.startswith(("slicegpt_", "lowrank_")):
        raise ModegptError(
            f"a '{config.model_type}' model has no plain form: only what MoDeGPT's modules shrank has one"
        )
    if config.model_type not in LAYOUTS:
        raise ModegptError(f"this '{config.model_type}' model is not compressed, so it is stock already")


def stock_model(small: PreTrainedModel) -> tuple[PreTrainedModel, ExportReport]:
    """The `LlamaForCausalLM` or `OPTForCausalLM` that computes what a compressed model computes.

    Args:
        small: a compressed model. It stays as it is; embeddings, norms and output biases are shared with the result.

    Returns:
        The stock model, in the same dtype and on the same device, and what the export saves and what it pads.

    Raises:
        ModegptError: `small` is not a compressed model.
    """
    check_compressed(small.config)
    mlp_size, places = LAYOUTS[small.config.model_type]
    family = FAMILIES[small.config.model_type.removeprefix("modegpt_")]
    widest = max(small.config.mlp_ranks)

    entries = {name: value for name, value in small.config.to_dict().items() if name not in NOT_STOCK}
    config = family.model_class.config_class(**entries | {mlp_size: widest})
    config._attn_implementation = small.config._attn_implementation
    with torch.device("meta"):
        stock = family.model_class(config).to(small.dtype).eval()
    stock.generation_config, stock.lm_head = small.generation_config, small.lm_head
    for name, module in small.get_decoder().named_children():
        if name != "layers":
            setattr(stock.get_decoder(), name, module)
    for layer, stock_layer in zip(family.layers(small), family.layers(stock), strict=True):
        _fill(stock_layer, layer, places(layer))

    shape = family.shape(small)  # the dense one: a compressed config keeps the sizes that it had
    ranks = list(zip(small.config.query_key_ranks, small.config.value_ranks, small.config.mlp_ranks, strict=True))
    return stock, ExportReport(
        dense=len(ranks) * shape.total,
        compressed=sum(shape.parameters(*layer) for layer in ranks),
        exported=len(ranks) * shape.parameters(shape.query_key, shape.value, widest),
    )


def _fill(stock_layer: nn.Module, layer: nn.Module, places: Places) -> None:
    """Give an empty stock layer (meta device) the weights of a compressed one, zeros where it had none."""
    small, state = layer.state_dict(), {}
    for name, empty in stock_layer.state_dict().items():
        module = name.rpartition(".")[0]
        axis, index = places.get(module, (None, None))
        if axis is None or axis == empty.dim():  # norms, and the biases of outputs: a vector has no axis 1
            state[name] = small[name]
            continue
        padded = torch.zeros_like(empty, device=small[f"{module}.weight"].device)
        if name in small:  # an OPT's values have no bias any more: it was folded into the output's
            padded.index_copy_(axis, index.to(padded.device), small[name])
        state[name] = padded
    stock_layer.load_state_dict(state, assign=True)


def _llama_places(layer: nn.Module) -> Places:
    attention, query_key = layer.self_attn, layer.self_attn.rotary_index.cpu()
    group, value = attention.num_key_value_groups, _first(attention.v_proj.out_features, len(query_key))
    channels = torch.arange(layer.mlp.down_proj.in_features)
    return {
        "self_attn.q_proj": (0, _in_heads(query_key.repeat_interleave(group, 0), attention.head_dim)),
        "self_attn.k_proj": (0, _in_heads(query_key, attention.head_dim)),
        "self_attn.v_proj": (0, _in_heads(value, attention.head_dim)),
        "self_attn.o_proj": (1, _in_heads(value.repeat_interleave(group, 0), attention.head_dim)),
        "mlp.gate_proj": (0, channels),
        "mlp.up_proj": (0, channels),
        "mlp.down_proj": (1, channels),
    }


def _opt_places(layer: nn.Module) -> Places:
    attention, channels = layer.self_attn, torch.arange(layer.fc2.in_features)
    # nothing rotates, so the query-key dims may come first, whichever were kept
    query_key = _in_heads(_first(attention.q_proj.out_features, attention.num_heads), attention.head_dim)
    value = _in_heads(_first(attention.v_proj.out_features, attention.num_heads), attention.head_dim)
    return {
        "self_attn.q_proj": (0, query_key),
        "self_attn.k_proj": (0, query_key),
        "self_attn.v_proj": (0, value),
        "self_attn.out_proj": (1, value),
        "fc1": (0, channels),
        "fc2": (1, channels),
    }


def _first(rows: int, heads: int) -> Tensor:
    """The first dims of every head, (heads, rows / heads)."""
    return torch.arange(rows // heads).expand(heads, -1)


def _in_heads(dims: Tensor, head_dim: int) -> Tensor:
    """Rows of a projection to heads of `head_dim`, from the dims (heads, rank) within each head."""
    return (head_dim * torch.arange(len(dims))[:, None] + dims).flatten()


# What the stock config calls the MLP's width, and where a layer's entries go
LAYOUTS: dict[str, tuple[str, Callable[[nn.Module], Places]]] = {
    ModeGPTLlamaConfig.model_type: ("intermediate_size", _llama_places),
    ModeGPTOPTConfig.model_type: ("ffn_dim", _opt_places),
}
