"""Greedy decoding over a static cache, launched kernel by kernel or as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

ROOM = 64  # of the cache beyond the prompt: no more steps than that


class Decoding:
    """Greedy decoding, one token a step for each of `batch` sequences, over a static cache that is filled randomly.

    Args:
        model: dense or compressed.
        batch: sequences decoded together.
        filled: tokens in the cache before the first step.
    """

    def __init__(self, model: PreTrainedModel, batch: int, filled: int) -> None:
        self.model, self.filled, self.call = model, filled, model
        self.cache = StaticCache(config=model.config, max_cache_len=filled + ROOM)
        self.first = torch.randint(model.config.vocab_size, (batch, 1), device=model.device)
        self.ids = self.first.clone()
        self.step()  # makes the cache's tensors
        for layer in self.cache.layers:
            layer.keys.normal_()
            layer.values.normal_()

    def restart(self) -> None:
        """Back to the first step."""
        self.ids.copy_(self.first)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.filled)

    def step(self) -> Tensor:
        """Decode one token; returns the logits (batch, 1, vocabulary)."""
        logits = self.call(self.ids, past_key_values=self.cache, use_cache=True).logits
        self.ids.copy_(logits.argmax(-1))
        return logits

    def steps(self, step: Callable[[], object], count: int) -> None:
        """Decode `count` tokens from the start, by `step` or what was made of it."""
        self.restart()
        for _ in range(count):
            step()

    def capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record one step as a CUDA graph: replaying it decodes the next token and leaves its logits in the tensor.

        The logits are (batch, vocabulary).
        """
        self.restart()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.restart()
        with torch.cuda.graph(graph):
            logits = self.step()
        return graph, logits

    def difference(self, replay: Callable[[], object], replayed: Tensor) -> dict[str, float]:
        """Relative difference of the first logits, launched a second time and replayed, from those launched first."""
        found = []
        for step, logits in ((self.step, None), (self.step, None), (replay, replayed)):
            self.restart()
            launched = step()
            found.append((launched if logits is None else logits).double())
        first, again, other = found
        errors = {"launched_again": again - first, "replayed": other - first}
        return {name: float(error.norm() / first.norm()) for name, error in errors.items()}


def cache_error(model: PreTrainedModel, tokens: int = 64) -> float:
    """Relative difference of the logits after `tokens` + 1 random tokens, with a static cache and without."""
    ids = torch.randint(model.config.vocab_size, (2, tokens + 1), device=model.device)
    whole = model(ids, use_cache=False).logits[:, -1].double()
    cache = StaticCache(config=model.config, max_cache_len=tokens + 16)
    model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cached = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1].double()
    return float((cached - whole).norm() / whole.norm())
