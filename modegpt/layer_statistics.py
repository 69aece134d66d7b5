"""What calibration finds out about a layer, and where all layers' findings wait until they are wanted."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from modegpt.gram import upper, whole


@dataclass
class LayerStatistics:
    """What one layer did on the calibration tokens.

    Gram matrices are float64 means over real tokens, None if not gathered, or if another rank decomposes the layer:
    mlp (n, n); query (kv_heads, group, d, d) and key (kv_heads, d, d) after rotation; value (kv_heads, d, d), without a
    bias; query_projected and key_projected, as query and key, of what query-key norms get, where there are any.
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


class WaitingStatistics:
    """The statistics of all layers of a model on a GPU, in the host's memory: layers * channels^2 * 5 bytes.

    Copies run in a thread, beside the GPU's work. Of the MLP's Gram matrix only the upper block rows wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1, "statistics")
        self.kept: list[Future] = []
        self.block_influence: list[float] = []

    def append(self, statistics: LayerStatistics) -> None:
        """Take the next layer's statistics to the host; those of the layer before have arrived by then."""
        if self.kept:
            self.kept[-1].result()
        if self.copies:
            self.copies.wait_stream(torch.cuda.current_stream(self.device))
        self.kept.append(self.thread.submit(self._away, statistics))
        self.block_influence.append(statistics.block_influence)

    def __iter__(self) -> Iterator[tuple[int, LayerStatistics]]:
        """(index, statistics) on the device, each brought there while the layer before is at work."""
        coming = self.thread.submit(self._back, 0)
        for index in range(len(self.kept)):
            found = coming.result()
            coming = self.thread.submit(self._back, index + 1)  # behind the last layer, None
            yield index, found
            del found

    def _away(self, statistics: LayerStatistics) -> dict[str, Any]:
        entries = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
        with torch.cuda.stream(self.copies) if self.copies else nullcontext():
            if statistics.mlp is not None:
                entries["mlp"] = [block.cpu() for block in upper(statistics.mlp)]
            return {name: part.cpu() if isinstance(part, Tensor) else part for name, part in entries.items()}

    def _back(self, index: int) -> LayerStatistics | None:
        if index == len(self.kept):
            return None
        entries = dict(self.kept[index].result())
        blocks = [self._bring(block) for block in entries.pop("mlp") or ()]
        found = {name: self._bring(part) if isinstance(part, Tensor) else part for name, part in entries.items()}
        return LayerStatistics(**found, mlp=whole(blocks) if blocks else None)

    def _bring(self, tensor: Tensor) -> Tensor:
        """On the device, in memory that the main stream may use and free."""
        if self.copies is None:
            return tensor.to(self.device)
        target = torch.empty_like(tensor, device=self.device)
        self.copies.wait_stream(torch.cuda.default_stream(self.device))  # what was there may still be in use
        with torch.cuda.stream(self.copies):
            target.copy_(tensor)
        self.copies.synchronize()
        return target
