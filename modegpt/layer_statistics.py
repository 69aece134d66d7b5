"""What calibration finds out about a layer, and how the findings on all layers wait until they are wanted."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modegpt.gram import upper, upper_size, whole


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


Blocks = dict[str, list[Tensor]]


class PackedStatistics:
    """The statistics of all layers in less room: only the upper block rows of the large Gram matrices, in `dtype`.

    Together at least layers * channels^2 * 4.5 bytes in float64, half of that in float32, enough for float32 products.
    Those of a GPU wait in the host's memory. One thread copies them there, and back before they are wanted, while the
    GPU works on.

    Args:
        dtype: of the blocks.
        device: of the statistics that come and go.

    Attributes:
        last_time: set it when nobody asks again: the thread then frees each layer's memory behind it, and asking again
            is an error.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device, self.last_time = dtype, device, False
        self.packed: list[tuple[LayerStatistics, Future[Blocks] | None]] = []
        self._copying = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def bytes_for(self, *sizes: int) -> int:
        """What the large Gram matrices of one layer take, of these sizes."""
        return sum(map(upper_size, sizes)) * self.dtype.itemsize

    def append(self, statistics: LayerStatistics) -> None:
        """Keep those of the next layer."""
        grams = {name: gram for name in ("mlp", "attention") if (gram := getattr(statistics, name)) is not None}
        blocks = {name: [block.to(self.dtype, copy=True) for block in upper(gram)] for name, gram in grams.items()}
        for _, waiting in self.packed:
            if waiting:
                waiting.result()  # or a slow host would leave many layers' blocks on the GPU
        waiting = self._begin(blocks, torch.device("cpu")) if blocks else None  # else another rank's layer
        self.packed.append((replace(statistics, **dict.fromkeys(grams)), waiting))

    def __iter__(self) -> Iterator[LayerStatistics]:
        """Each layer's as it was gathered, in turn."""
        ahead = iter([index for index, (_, waiting) in enumerate(self.packed) if waiting])
        coming = self._fetch(next(ahead, None))
        for rest, waiting in self.packed:
            if not waiting:
                yield rest
                continue
            blocks = coming.result()
            found = replace(rest, **{name: whole([b.double() for b in parts]) for name, parts in blocks.items()})
            del blocks
            coming = self._fetch(next(ahead, None))
            yield found
            del found

    def _fetch(self, index: int | None) -> Future[Blocks] | None:
        """The blocks of a layer, if there is one more, on their way back to the device."""
        if index is None:
            return None
        rest, waiting = self.packed[index]
        if self.last_time:
            gone: Future[Blocks] = Future()
            gone.cancel()  # who asks again gets an error, and does not wait for ever
            self.packed[index] = rest, gone
        return self._begin(waiting.result(), self.device)

    def _begin(self, blocks: Blocks, device: torch.device) -> Future[Blocks]:
        """Have the thread copy them, once all that was asked of the GPU so far is done."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

        def run() -> Blocks:
            with torch.cuda.stream(self._stream):  # which does nothing on a CPU
                return {name: [_copied(block, device) for block in parts] for name, parts in blocks.items()}

        return self._copying.submit(run)

    @property
    def block_influence(self) -> list[float]:
        """That of every layer, for which no Gram matrix has to be unpacked."""
        return [rest.block_influence for rest, _ in self.packed]


def _copied(block: Tensor, device: torch.device) -> Tensor:
    """On that device, by way of a little pinned memory that torch keeps for the next block.

    To pin all of it takes seconds, and a copy between the GPU and memory that is not pinned holds up the kernels that
    the other thread asks for.
    """
    if block.device.type == device.type:
        return block
    if block.is_cuda:
        pinned = torch.empty_like(block, device=device, pin_memory=True)
        return pinned.copy_(block).clone()
    return block.pin_memory().to(device)
