"""SVD-LLM's whitening (arXiv 2403.07378): every matrix by itself, weighted by its inputs."""

from modegpt import token_windows
from modegpt.methods import METHODS


def compress(model, tokenizer, text, ratio):
    tokens = token_windows(text, tokenizer, 32, 512, seed=0)
    factors = METHODS["svd-llm"].measure(model, tokens)
    return METHODS["svd-llm"].compress(model, factors, ratio)[0]
