"""What calibration finds out about a layer, and how the findings on all layers wait until they are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modegpt.gram import upper, whole


@dataclass
class LayerStatistics:
    """What one layer did on the calibration tokens.

    Gram matrices are float64 means over real tokens, None if not gathered, or if another rank decomposes the layer:
    mlp (n, n); query (kv_heads, group, d, d) and key (kv_heads, d, d) after rotation; value (kv_heads, d, d), without a
    bias; query_projected and key_projected, as query and key, of what query-key norms get, where there are any;
    attention (width, width), of what enters the attention, where it is asked for.
    mlp_mean (n,) is the mean of the MLP's activations. `block_influence` is 1 - E[cos(x_in, x_out)] of the
    residual stream (ShortGPT, arXiv 2403.03853), in the last layer before the final norm.
    """

    tokens: int
    block_influence: float
    mlp: Tensor | None = None
    mlp_mean: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    query_projected: Tensor | None = None
    key_projected: Tensor | None = None
    attention: Tensor | None = None


class PackedStatistics:
    """The statistics of all layers in less room: only the upper block rows of the large Gram matrices, in `dtype`.

    Together layers * channels^2 * 5 bytes in float64, half of that in float32, which is enough for float32 products.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.packed: list[tuple[LayerStatistics, dict[str, list[Tensor]]]] = []

    def bytes_for(self, *sizes: int) -> float:
        """What one layer with large Gram matrices of these sizes takes, nearly."""
        return 0.625 * sum(size**2 for size in sizes) * self.dtype.itemsize

    def append(self, statistics: LayerStatistics) -> None:
        """Keep those of the next layer."""
        grams = {name: gram for name in ("mlp", "attention") if (gram := getattr(statistics, name)) is not None}
        blocks = {name: [block.to(self.dtype, copy=True) for block in upper(gram)] for name, gram in grams.items()}
        self.packed.append((replace(statistics, **dict.fromkeys(grams)), blocks))

    def __iter__(self) -> Iterator[LayerStatistics]:
        """Each layer's as it was gathered, in turn."""
        for rest, blocks in self.packed:
            yield replace(rest, **{name: whole([b.double() for b in parts]) for name, parts in blocks.items()})

    @property
    def block_influence(self) -> list[float]:
        """That of every layer, for which no Gram matrix has to be unpacked."""
        return [rest.block_influence for rest, _ in self.packed]
