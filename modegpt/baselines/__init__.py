"""The methods that MoDeGPT is compared with, one short file each.

A method is two functions. `measure(model, data, *, batch_size, progress)` gathers, once for all ratios, what the
method needs to know, and leaves the model as it is. `compress(model, measured, ratio)` takes the model apart and
returns the smaller one and its report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from modegpt.report import Report


@dataclass(frozen=True)
class Method:
    """One way to compress a model: see above."""

    measure: Callable[..., Any]
    compress: Callable[[PreTrainedModel, Any, float], tuple[PreTrainedModel, Report]]
    summary: str
