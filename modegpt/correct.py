"""Half correction: each output matrix pays for a part of the error that earlier layers left. Ours, not the paper's.

The paper solves every layer on dense activations, as if the layers before it were whole. Here the tokens run twice, as
h through the dense layers and as g through the compressed ones. Let Z be what really enters an output matrix W of the
compressed layer, f(g) what the whole module would make of g, and h' the dense stream behind this module. The module
should give f(g), or, to make good what went wrong before, h' - g. With a share beta of the second,

    E = (1 - beta) f(g) + beta (h' - g) - Z W,    W <- W + (Z^T Z + lambda mean(diag Z^T Z) I)^-1 Z^T E,

a ridge regression, first for W_O and then, with the new attention, for W_down. beta = 1 overfits the calibration text.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt import parallel
from modegpt.calibrate import States, real_rows, tapped
from modegpt.decompose import damped_cholesky
from modegpt.errors import ModegptError
from modegpt.families import Family
from modegpt.gram import GramSum, product

RIDGE = 0.003  # relative to the mean of the diagonal


def refit(gram: Tensor, cross: Tensor, ridge: float = RIDGE) -> Tensor:
    """What to add to W: (Z^T Z + ridge mean(diag Z^T Z) I)^-1 Z^T E, (n, width) float64.

    Args:
        gram: Z^T Z, (n, n) float64.
        cross: Z^T E, (n, width).
        ridge: lambda, > 0.
    """
    factor, _ = damped_cholesky(gram, ridge)
    return torch.cholesky_solve(cross.to(gram), factor)


def check_share(model: PreTrainedModel, family: Family, share: float) -> None:
    """Raise ModegptError unless `share` is in [0, 1] and the model normalises only what its blocks get."""
    if not 0 <= share <= 1:
        raise ModegptError(f"the share of the error to correct lies in [0, 1], got {share:g}")
    if share and not family.norms_first(model.config):
        raise ModegptError("correction needs norms before attention and MLP, this model has some behind: --correct 0")


class Correction:
    """The two streams of hidden states, taken past one layer after the other.

    Args:
        states: the dense stream, in front of the first layer; it is taken past each layer here. With several ranks each
            has its share of the tokens.
        share: beta, in (0, 1].
        device: where the layers are. On a CPU what enters an output matrix of all tokens is kept until that is solved
            for; on a GPU, where it would be in the way, it is made again.
    """

    def __init__(
        self, states: States, family: Family, share: float, device: torch.device, product_dtype: torch.dtype
    ) -> None:
        self.share, self.dtype, self.device = share, product_dtype, device
        self.attention, self.mlp = family.outputs
        self.after_attention = (*family.up, self.mlp)
        self.dense, self.kwargs, self.real = states.hidden, states.kwargs, states.real
        self.compressed = [hidden.clone() for hidden in self.dense]

    @torch.no_grad()
    def run(self, index: int, layer: nn.Module, small: nn.Module, channels: Tensor) -> None:
        """Correct the output matrices of `small`, the compressed `layer`, in place, and take both streams past it.

        Args:
            channels: of the layer's MLP, those that the small one keeps.
        """
        attention, mlp = small.get_submodule(self.attention), small.get_submodule(self.mlp)
        channels = channels.to(self.device)
        sums = _Sums(self.dtype, self.device.type == "cpu")
        for b, kwargs in self._batches(index):
            h, g = self.dense[b].to(self.device), self.compressed[b].to(self.device)
            with _recorded(layer.get_submodule(self.attention)) as whole:
                after = layer(h, **kwargs)
            target = self._target(self._attention(layer, g, kwargs)[1], h + whole["output"], g)
            sums.add(*self._attention(small, g, kwargs), target, self.real[b])
            self.dense[b].copy_(after)  # last: h may be that very tensor
        sums.refit_(attention)

        seen, sums = sums.kept, _Sums(self.dtype, self.device.type == "cpu")
        for b, kwargs in self._batches(index):
            g = self.compressed[b].to(self.device)
            g = g + (attention(seen.pop(0)) if seen else self._attention(small, g, kwargs)[1])
            self.compressed[b].copy_(g)
            inputs, own = self._mlp(layer, g, kwargs)
            inputs = inputs[..., channels]  # the small MLP would make the same
            target = self._target(own, self.dense[b].to(self.device), g)
            sums.add(inputs, mlp(inputs), target, self.real[b])
        sums.refit_(mlp)
        self._advance(index, small, sums.kept)

    @torch.no_grad()
    def skip(self, index: int, layer: nn.Module, small: nn.Module) -> None:
        """Take both streams past a layer that an earlier run has corrected."""
        for b, kwargs in self._batches(index):
            self.dense[b].copy_(layer(self.dense[b].to(self.device), **kwargs))
            g = self.compressed[b].to(self.device)
            self.compressed[b].copy_(g + self._attention(small, g, kwargs)[1])
        self._advance(index, small, [])

    def _batches(self, index: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((b, kwargs[index]) for b, kwargs in enumerate(self.kwargs))

    def _advance(self, index: int, small: nn.Module, seen: list[Tensor]) -> None:
        mlp = small.get_submodule(self.mlp)
        for b, kwargs in self._batches(index):
            g = self.compressed[b].to(self.device)
            self.compressed[b].copy_(g + (mlp(seen.pop(0)) if seen else self._mlp(small, g, kwargs)[1]))

    def _attention(self, layer: nn.Module, states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What enters and leaves W_O for these hidden states, (batch, tokens, n) and (batch, tokens, width)."""
        with _without(layer, self.after_attention), _recorded(layer.get_submodule(self.attention)) as seen:
            layer(states, **kwargs)
        return seen["input"], seen["output"]

    def _mlp(self, layer: nn.Module, states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What enters and leaves W_down if these are the hidden states behind the attention, shaped like them."""
        with _without(layer, ("self_attn",)), _recorded(layer.get_submodule(self.mlp)) as seen:
            layer(states, **kwargs)
        return tuple(t.view(*states.shape[:-1], -1) for t in (seen["input"], seen["output"]))

    def _target(self, own: Tensor, wanted: Tensor, g: Tensor) -> Tensor:
        """(1 - beta) f(g) + beta (h' - g), in float32 at least: differences of large numbers."""
        own, wanted, g = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (own, wanted, g))
        return (1 - self.share) * own + self.share * (wanted - g)


class _Sums:
    """Z^T Z and Z^T E over all batches and ranks. `kept` is Z, batch by batch, or empty."""

    def __init__(self, dtype: torch.dtype, keep: bool) -> None:
        self.gram, self.cross, self.dtype, self.keep = GramSum(dtype), 0.0, dtype, keep
        self.kept: list[Tensor] = []

    def add(self, inputs: Tensor, given: Tensor, target: Tensor, real: Tensor) -> None:
        if self.keep:
            self.kept.append(inputs)
        z, error = real_rows(inputs, real), real_rows(target - given.to(target), real)
        self.gram.add(z)
        self.cross = self.cross + product(z, error, self.dtype).double()

    def refit_(self, linear: nn.Linear) -> None:
        """Add the solution to the matrix, in place."""
        for part in (*self.gram.blocks, self.cross):
            parallel.add_up(part)
        update = refit(self.gram.matrix(), self.cross)
        linear.weight.copy_(linear.weight.double() + update.mT)


def _recorded(linear: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """What enters and leaves a linear map inside the block: "input" and "output"."""
    return tapped({side: (linear, side) for side in ("input", "output")})


@contextmanager
def _without(layer: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let these parts of a layer add nothing, and take no time, inside the block."""
    parts = {name: layer.get_submodule(name) for name in names}
    for name in parts:
        layer.set_submodule(name, _NoAttention() if name == "self_attn" else _NoMap())
    try:
        yield
    finally:
        for name, part in parts.items():
            layer.set_submodule(name, part)


class _NoMap(nn.Module):
    """A linear map to zero."""

    def forward(self, states: Tensor) -> Tensor:
        return states.new_zeros(())


class _NoAttention(nn.Module):
    """An attention that adds nothing."""

    def forward(self, hidden_states: Tensor, **_kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(()), None
