"""The methods that MoDeGPT is compared with, one short file each.

A method is two functions. `measure(model, data, *, batch_size, progress)` gathers, once for all ratios, what the
method needs to know, and leaves the model as it is. `compress(model, measured, ratio)` takes the model apart and
returns the smaller one and its report. What is put into METHODS is a method of the command line too: CONTRIBUTING.md
shows how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from modegpt.errors import ModegptError
from modegpt.methods import fwsvd, magnitude, modegpt, shortgpt, slicegpt, svd, svd_llm
from modegpt.report import Report


@dataclass(frozen=True)
class Method:
    """One way to compress a model: see above. `calibrated` says whether it looks at the data."""

    measure: Callable[..., Any]
    compress: Callable[[PreTrainedModel, Any, float], tuple[PreTrainedModel, Report]]
    summary: str
    calibrated: bool = True


METHODS: dict[str, Method] = {
    "modegpt": Method(modegpt.measure, modegpt.compress, "modular decomposition of matrix pairs"),
    "modegpt-plus": Method(modegpt.measure_plus, modegpt.compress_plus, "ours: measured allocation, half correction"),
    "svd": Method(svd.measure, svd.compress, "truncated SVD of every matrix", calibrated=False),
    "svd-llm": Method(svd_llm.measure, svd_llm.compress, "SVD of every matrix, whitened by its inputs"),
    "fwsvd": Method(fwsvd.measure, fwsvd.compress, "SVD of every matrix, rows weighted by Fisher information"),
    "fwsvd-shifted": Method(
        partial(fwsvd.measure, shifted=True), fwsvd.compress, "FWSVD with a widely copied fault: labels shifted twice"
    ),
    "slicegpt": Method(slicegpt.measure, slicegpt.compress, "PCA of the residual stream, a narrower model"),
    "shortgpt": Method(shortgpt.measure, shortgpt.compress, "the layers that change least are dropped"),
    "magnitude": Method(
        magnitude.measure, magnitude.compress, "channels and head dims of least weight are dropped", calibrated=False
    ),
}


def method_named(name: str) -> Method:
    """The method of this name. Raises ModegptError, which lists the known ones, if there is none."""
    if name not in METHODS:
        raise ModegptError(f"unknown method '{name}': the methods are {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "method_named"]
