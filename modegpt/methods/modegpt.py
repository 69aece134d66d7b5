"""MoDeGPT itself behind the interface of the methods that it is compared with."""

from transformers import PreTrainedModel

from modegpt.calibrate import LayerStatistics, Tokens, collect
from modegpt.pipeline import compress as compress_model
from modegpt.report import Report


def measure(
    model: PreTrainedModel, data: Tokens, *, batch_size: int = 4, progress: bool = False
) -> list[LayerStatistics]:
    """The Gram matrices and Block Influence of every layer."""
    return collect(model, data, batch_size=batch_size, progress=progress)


def compress(model: PreTrainedModel, statistics: list[LayerStatistics], ratio: float) -> tuple[PreTrainedModel, Report]:
    """MoDeGPT with its defaults: global allocation, ranks in multiples of 8."""
    return compress_model(model, statistics, ratio=ratio)
