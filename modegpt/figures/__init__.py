"""Every plot of the kit: `results` draws saved results, the files named like a notebook draw that lesson's data."""

from modegpt.figures.results import (
    accuracy_against_share,
    perplexity_against_parameters,
    perplexity_against_ratio,
    training_curve,
)
from modegpt.figures.style import Picture, keep, show
from modegpt.figures.throughput import throughput_against_ratio

__all__ = [
    "Picture",
    "accuracy_against_share",
    "keep",
    "perplexity_against_parameters",
    "perplexity_against_ratio",
    "show",
    "throughput_against_ratio",
    "training_curve",
]
