"""A compressed model as a plain Llama or OPT, for tools that know nothing else.

A stock config has one size for all layers, so what is smaller is padded with zeros, which change no logit:

- query-key dims return to their places in a head of the original size: the rotary frequencies depend on the places,
  the softmax scale on the size;
- value dims are padded to the original head as well, whose size is one number for queries, keys and values;
- MLP channels are padded to the widest layer's, so layers of one width need no padding.

A projection that queries and keys share is multiplied into both: these are as large again as they were.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.families import base_family
from modegpt.families.base import Places
from modegpt.modeling import COMPRESSED

NOT_STOCK = (
    *("query_key_ranks", "value_ranks", "mlp_ranks", "shared_ranks"),
    *("model_type", "architectures", "auto_map", "transformers_version"),
)


@dataclass(frozen=True)
class ExportReport:
    """Parameters of the block matrices: of the dense model, the compressed one, and the exported one.

    `multiplied` are those of the compressed one when a projection that queries and keys share is multiplied out.
    """

    dense: int
    compressed: int
    multiplied: int
    exported: int

    @property
    def saved(self) -> float:
        """Share of the dense matrices that the exported model does without."""
        return 1 - self.exported / self.dense

    @property
    def padding(self) -> float:
        """Share of the exported matrices that is zeros put in."""
        return 1 - self.multiplied / self.exported

    def to_dict(self) -> dict[str, int | float]:
        """Everything as plain JSON types."""
        return asdict(self) | {"saved": self.saved, "padding": self.padding}

    def __str__(self) -> str:
        dense, compressed, multiplied, exported = (count / 1e6 for count in asdict(self).values())
        out = f"{multiplied:.1f} M with its projections multiplied out -> " if multiplied != compressed else ""
        return (
            f"block parameters: {dense:.1f} M dense -> {compressed:.1f} M compressed -> {out}{exported:.1f} M exported"
            f", {self.saved:.1%} fewer than dense; {self.padding:.1%} of the exported ones are zeros that pad"
        )


def check_compressed(config: PreTrainedConfig) -> None:
    """Raise ModegptError unless this is the config of a compressed model."""
    if config.model_type not in COMPRESSED:
        raise ModegptError(f"this '{config.model_type}' model is not compressed, so it is stock already")
    if not hasattr(config, "mlp_ranks"):
        raise ModegptError(
            f"a '{config.model_type}' model has no plain form: only what MoDeGPT's modules shrank has one"
        )


def stock_model(small: PreTrainedModel, one_width: bool = True) -> tuple[PreTrainedModel, ExportReport]:
    """The `LlamaForCausalLM` or `OPTForCausalLM` that computes what a compressed model computes.

    Args:
        small: a compressed model. It stays as it is; embeddings, norms and output biases are shared with the result.
        one_width: what a config can say. False leaves every MLP as wide as it is, for formats that can say more.

    Returns:
        The stock model, in the same dtype and on the same device, and what the export saves and what it pads.

    Raises:
        ModegptError: `small` is not a compressed model.
    """
    check_compressed(small.config)
    family = base_family(small.config)
    widest = max(small.config.mlp_ranks)
    widths = [widest] * len(small.config.mlp_ranks) if one_width else small.config.mlp_ranks

    entries = {name: value for name, value in small.config.to_dict().items() if name not in NOT_STOCK}
    config = family.model_class.config_class(**entries | {family.mlp_size: widest})
    config._attn_implementation = small.config._attn_implementation
    with torch.device("meta"):
        stock = family.model_class(config).to(small.dtype).eval()
        layers = family.layers(stock)
        for index, width in enumerate(widths):
            if width != widest:
                own = family.model_class.config_class(**entries | {family.mlp_size: width})
                own._attn_implementation = config._attn_implementation
                layers[index] = type(layers[index])(own, index).to(small.dtype).eval()
    stock.generation_config, stock.lm_head = small.generation_config, small.lm_head
    for name, module in small.get_decoder().named_children():
        if name != "layers":
            setattr(stock.get_decoder(), name, module)
    multiplied = 0
    for layer, stock_layer in zip(family.layers(small), family.layers(stock), strict=True):
        plain, places = family.plain_state(layer), family.places(layer)
        multiplied += sum(plain[f"{name}.weight"].numel() for name in places)
        _fill(stock_layer, plain, places)

    shape = family.shape(small)  # the dense one: a compressed config keeps the sizes that it had
    matrices = (m.weight for m in family.layers(small).modules() if isinstance(m, nn.Linear))
    return stock, ExportReport(
        dense=len(widths) * shape.total,
        compressed=sum(matrix.numel() for matrix in matrices),
        multiplied=multiplied,
        exported=sum(shape.parameters(shape.query_key, shape.value, width) for width in widths),
    )


def _fill(stock_layer: nn.Module, small: dict[str, Tensor], places: Places) -> None:
    """Give an empty stock layer (meta device) the weights of a compressed one, zeros where it had none."""
    state = {}
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
