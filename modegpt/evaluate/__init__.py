"""Measuring a model: perplexity."""

from modegpt.evaluate.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
