"""MoDeGPT itself, and what this kit makes of it, behind the interface of the methods that it is compared with."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from modegpt.calibrate import Tokens, collect
from modegpt.correct import check_share
from modegpt.families import family_of
from modegpt.layer_statistics import LayerStatistics
from modegpt.measure import Curves
from modegpt.pipeline import PLUS
from modegpt.pipeline import compress as compress_model
from modegpt.report import Report


@dataclass
class Measured:
    """What is gathered once for all ratios: tokens, statistics, and for modegpt-plus the curves as they come to be."""

    tokens: Tokens
    statistics: list[LayerStatistics]
    batch_size: int
    curves: Curves | None = None


def measure(model: PreTrainedModel, data: Tokens, *, batch_size: int = 4, progress: bool = False) -> Measured:
    """The Gram matrices and Block Influence of every layer."""
    return Measured(data, collect(model, data, batch_size=batch_size, progress=progress), batch_size)


def compress(model: PreTrainedModel, measured: Measured, ratio: float) -> tuple[PreTrainedModel, Report]:
    """MoDeGPT with its defaults: global allocation, ranks in multiples of 8."""
    return compress_model(model, measured.statistics, ratio=ratio)


def measure_plus(model: PreTrainedModel, data: Tokens, **options: Any) -> Measured:
    """The same, of a model that can be corrected."""
    check_share(model, family_of(model), PLUS["correct"])
    return measure(model, data, **options)


def compress_plus(model: PreTrainedModel, measured: Measured, ratio: float) -> tuple[PreTrainedModel, Report]:
    """MoDeGPT with measured allocation and half correction."""

    def note(name: str, value: Any) -> None:
        if name == "curves":
            measured.curves = value

    known = {"curves": measured.curves} if measured.curves else {}
    options = PLUS | {"batch_size": measured.batch_size, "known": known, "on_known": note}
    return compress_model(model, measured.tokens, statistics=measured.statistics, ratio=ratio, **options)
