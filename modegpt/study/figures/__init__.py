"""Every plot of the kit: `results` draws saved results, the files named like a notebook draw that lesson's data."""

from modegpt.study.figures.results import (
    accuracy_on_tasks,
    perplexity_against_parameters,
    perplexity_against_ratio,
    training_curve,
)
from modegpt.study.figures.throughput import throughput_against_ratio
from modegpt.style import Picture, keep, show

__all__ = [
    "Picture",
    "accuracy_on_tasks",
    "keep",
    "perplexity_against_parameters",
    "perplexity_against_ratio",
    "show",
    "throughput_against_ratio",
    "training_curve",
]
