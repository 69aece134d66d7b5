"""What the pipeline must know of a model family, and nothing of statistics."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt.allocate import LayerShape, Ranks


@dataclass(frozen=True)
class FreeMatrices:
    """The matrices of a layer that are solved for again; tokens are rows, so a map is (in, out).

    down (channels, width); value (kv_heads, width, d); output (kv_heads, group, d, width).
    """

    down: Tensor
    value: Tensor
    output: Tensor


@dataclass(frozen=True)
class Decomposed:
    """What the three decompositions decided for one layer.

    channels (mlp rank,) and dims (kv_heads, query-key rank) are indices to keep; the matrices are as in
    `FreeMatrices`, shrunk.
    """

    channels: Tensor
    dims: Tensor
    matrices: FreeMatrices


Tap = tuple[nn.Module, Literal["input", "output"]]


class Family(Protocol):
    """One model family: where its modules are, its rotary layout, its compressed counterpart."""

    rotary: bool

    def check(self, model: PreTrainedModel) -> None:
        """Raise ModegptError naming the first part of the model that this family does not understand."""

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers."""

    def shape(self, model: PreTrainedModel) -> LayerShape:
        """Sizes of one layer and what they cost."""

    def taps(self, layer: nn.Module) -> dict[str, Tap]:
        """Where the activations "mlp", "query", "key" and "value" can be read: a module, and which side of it."""

    def rotate(self, query: Tensor, key: Tensor, layer_kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries (batch, heads, tokens, d) and keys (batch, kv_heads, tokens, d) as attention sees them."""

    def matrices(self, layer: nn.Module) -> FreeMatrices:
        """Read the free matrices of a dense layer."""

    def shell(self, model: PreTrainedModel, ranks: list[Ranks]) -> PreTrainedModel:
        """The compressed model, everything but its layers shared with `model`, its layers empty (meta device)."""

    def fill(self, shell_layer: nn.Module, layer: nn.Module, decomposed: Decomposed) -> None:
        """Give an empty layer of the shell its weights."""
