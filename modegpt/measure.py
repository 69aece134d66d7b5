"""Measured allocation: what each module of each layer is worth, asked of the model itself. Ours, not the paper's.

Block Influence gives a layer one number, and all three of its modules the same ratio. Here one module at a time is put
in place at a few sizes, and the mean KL divergence of the next-token distribution from the dense model's says what that
costs. Between the measured sizes the divergence follows the module's own residual, which the decomposition knows at
every size. To second order the divergences of small changes add up, so the sizes that minimise their sum within the
budget are a knapsack.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt import parallel
from modegpt.allocate import MODULES, LayerShape, Module, Ranks, knapsack, sizes_of, units_of
from modegpt.calibrate import Calibration, layer_inputs, token_batches
from modegpt.decompose import (
    cr_residuals,
    nystrom_residuals,
    pair_weights,
    query_key_residuals,
    shared_residuals,
    value_output_residuals,
)
from modegpt.errors import ModegptError
from modegpt.families import Family, FreeMatrices
from modegpt.inference import in_eval_mode
from modegpt.layer_statistics import LayerStatistics

TOKENS = 1024  # to measure on, by default
SHARES = (0.8, 0.5)  # of a module's full size, where its divergence is measured
WINDOW, FEWEST = 256, 256  # tokens in a window to measure on; tokens in all
RESOLUTION = 1e-7  # nats that float32 logits resolve: a divergence measured as 0 is no proof that fewer cost nothing
NEGLIGIBLE = 1e-12  # of the largest residual
COLUMNS = 2048  # of the logits at a time: on a CPU, memory that a large block takes and gives back costs time

Divergences = dict[tuple[int, Module, int], float]  # (layer, module, size) -> nats per token
Residuals = list[dict[Module, Tensor]]  # for each layer what its decomposition loses at every size, (full + 1,)
Decompose = Callable[[LayerStatistics, FreeMatrices, Ranks], tuple[Any, float]]


@dataclass(frozen=True)
class Curves:
    """What every module of every layer costs, in nats of KL divergence per token.

    `measured` lists (layer, module, size, divergence); `expected` holds for each layer and module the divergence at
    every allowed size, ascending; `tokens` is how many were measured on.
    """

    tokens: int
    measured: list[tuple[int, Module, int, float]]
    expected: list[dict[Module, list[float]]]


def measure(
    model: PreTrainedModel,
    family: Family,
    data: Calibration,
    statistics: Iterable[tuple[int, LayerStatistics]],
    decompose: Decompose,
    *,
    modules: Sequence[Module] = MODULES,
    multiple_of: int = 8,
    query_key: Literal["select", "svd", "shared"] = "select",
    tokens: int = TOKENS,
    shape: LayerShape | None = None,
    measured: Sequence[tuple[int, Module, int, float]] = (),
    on_measured: Callable[[list], None] = lambda _: None,
    **running: Any,
) -> Curves:
    """Ask the dense model what each of its modules costs it, at two sizes, and fill in the others.

    Args:
        model: dense; its layers are run, and stay as they are.
        data: calibration tokens; some windows of them are measured on.
        statistics: (index, Gram matrices) of each layer in turn; with several ranks each measures its own layers.
        decompose: makes of a layer's statistics, its matrices and ranks what `Family.fill` takes.
        modules, multiple_of, query_key: which modules may shrink, to which sizes, and how query-key does.
        tokens: how many to measure on.
        shape: of a layer, if not the family's.
        measured, on_measured: what an interrupted run has measured; called with all of it after each layer.
        running: `batch_size`, `progress`, and `wait`: only the layer at hand is in memory (streaming), so changed
            states wait for the layers that follow, and `on_measured` for the end.

    Raises:
        ModegptError: too few tokens to measure on, padded ones, or a divergence that is not finite.
    """
    windows, shape = measuring_windows(data, tokens), shape or family.shape(model)
    sizes = sizes_to_measure(shape, multiple_of, modules)
    known: Divergences = {(layer, module, size): value for layer, module, size, value in measured}

    def note(found: Divergences) -> None:
        on_measured([(*key, value) for key, value in sorted(found.items())])

    given = (statistics, windows, shape, sizes, decompose, query_key, known, note)
    found, residuals = divergences(model, family, *given, **running)
    expected = expected_divergences(found, residuals, shape, multiple_of)
    return Curves(windows.numel(), [(*key, value) for key, value in sorted(found.items())], expected)


def check_measuring(
    data: Calibration | str,
    tokens: int,
    shape: LayerShape,
    layers: int,
    ratio: float,
    multiple_of: int,
    modules: Sequence,
) -> None:
    """Raise ModegptError for what `measure` or the budget would refuse later, before any work."""
    if not isinstance(data, str):
        measuring_windows(data, tokens)
    free = {m: [0.0] * len(sizes_of(getattr(shape, m), units_of(shape, multiple_of)[m])) for m in modules}
    measured_allocation(Curves(0, [], [free] * layers), shape, ratio, multiple_of)


def measuring_windows(data: Calibration, tokens: int) -> Tensor:
    """Short windows of the calibration text, (windows, at most 256), from all over it.

    Raises:
        ModegptError: statistics instead of tokens, padded tokens, or fewer than 256.
    """
    if isinstance(data, list):
        raise ModegptError("measured allocation runs the model: give tokens to calibrate on, not collected statistics")
    ids = data.get("input_ids") if isinstance(data, Mapping) else data
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        raise ModegptError("calibration tokens are a non-empty (samples, length) tensor")
    if isinstance(data, Mapping) and not data.get("attention_mask", torch.ones(1)).all():
        raise ModegptError("measured allocation takes calibration windows without padding")
    length = min(WINDOW, ids.shape[1])
    count = min(max(1, tokens // length), len(ids))
    if count * length < FEWEST:
        raise ModegptError(f"measured allocation needs {FEWEST} tokens to measure on, got {count * length}: give more")
    return ids[torch.linspace(0, len(ids) - 1, count).round().long(), :length]


def sizes_to_measure(shape: LayerShape, multiple_of: int, modules: Sequence[Module]) -> dict[Module, list[int]]:
    """The allowed sizes nearest to `SHARES` of the full one, for every module that may shrink."""
    found = {}
    for module in modules:
        full = getattr(shape, module)
        allowed = sizes_of(full, units_of(shape, multiple_of)[module])
        near = {min(allowed, key=lambda size: abs(size - share * full)) for share in SHARES}
        found[module] = sorted(near - {full})
    return found


@in_eval_mode
@torch.no_grad()
def divergences(
    model: PreTrainedModel,
    family: Family,
    statistics: Iterable[tuple[int, LayerStatistics]],
    windows: Tensor,
    shape: LayerShape,
    sizes: Mapping[Module, Sequence[int]],
    decompose: Decompose,
    query_key: str,
    known: Divergences,
    note: Callable[[Divergences], None],
    *,
    batch_size: int = 4,
    wait: bool = False,
    progress: bool = False,
) -> tuple[Divergences, Residuals]:
    """The divergence of every module at these sizes, one in place at a time, and its residual at every size."""
    layers, full = family.layers(model), {module: getattr(shape, module) for module in MODULES}
    tries = [(module, size) for module, chosen in sizes.items() for size in chosen]
    ranks = {(module, size): shape.ranks(**full | {module: size}) for module, size in tries}
    shells = {each: family.shell(model, [ranks[each]] * len(layers)) for each in tries}
    batches = token_batches(model, windows, batch_size)
    states, kwargs = zip(*(layer_inputs(model, layers, batch) for batch in batches), strict=True)

    def through(index: int, layer: nn.Module, states: Sequence[Tensor]) -> list[Tensor]:
        return [layer(hidden, **each[index]) for hidden, each in zip(states, kwargs, strict=True)]

    def finish(start: int, states: Sequence[Tensor]) -> Sequence[Tensor]:
        for index in range(start, len(layers)):
            states = through(index, layers[index], states)
        return states

    found, residuals = dict(known), [{} for _ in layers]
    waiting: dict[tuple[int, Module, int], list[Tensor]] = {}
    reference = None if wait else _Reference(model, layers, batches, finish(0, states))
    with Progress(transient=True, disable=not progress or parallel.rank() > 0) as bar:
        task = bar.add_task("measure modules", total=len(layers))
        for index, grams in statistics:
            layer = layers[index]
            waiting = {key: through(index, layer, changed) for key, changed in waiting.items()}
            if parallel.mine(index):
                dense = family.matrices(layer)
                residuals[index] = {m: _residual(m, grams, dense, family.rotary, query_key, shape) for m in sizes}
                for module, size in tries:
                    if (key := (index, module, size)) in found:
                        continue
                    shell = shells[module, size]
                    small = family.layers(shell)[index]
                    decomposed, _ = decompose(grams, dense, ranks[module, size])
                    family.fill(small, layer, decomposed)
                    changed = through(index, small, states)
                    small.to("meta")
                    if wait:
                        waiting[key] = changed
                    else:
                        found[key] = reference.divergence(finish(index + 1, changed))
                if not wait:
                    note(found)
            states = through(index, layer, states)
            bar.advance(task)
    if wait:
        reference = _Reference(model, layers, batches, states)
        found |= {key: reference.divergence(changed) for key, changed in waiting.items()}
        note(found)
    for others in parallel.gather(found):
        found |= others
    residuals = [next(r for r in each if r) for each in zip(*parallel.gather(residuals), strict=True)]
    for (index, module, size), value in found.items():
        if not math.isfinite(value):
            raise ModegptError(f"layer {index}: with {module} at {size} the model's divergence is not finite")
    return found, residuals


def _residual(
    module: Module, grams: LayerStatistics, dense: FreeMatrices, rotary: bool, query_key: str, shape: LayerShape
) -> Tensor:
    """What the module's decomposition loses at every size, (full + 1,), on the CPU."""
    if module == "mlp":
        lost = nystrom_residuals(grams.mlp, dense.down)
    elif module == "value":
        lost = value_output_residuals(grams.value, dense.output)
    elif query_key == "svd":
        lost = query_key_residuals(grams.query, grams.key)
    elif query_key == "shared":
        weight, weights = torch.cat(dense.query_key, 1), pair_weights(grams.query, grams.key)
        lost = shared_residuals(grams.attention, weight, weights)
        lost = torch.cat([lost[: shape.query_key], lost.new_zeros(1)])  # the largest size is the layer as it is
    else:
        lost = cr_residuals(grams.query, grams.key, rotary)
    return lost.cpu()


class _Reference:
    """The dense model's next-token distribution p on the windows to measure on.

    KL(p, q) is the cross-entropy of p and q less that of p and itself. Logits are made for a part of the vocabulary at
    a time and never lie in memory together: on a CPU that is faster too. They are taken less the dense model's own
    logarithm of their exponentials' sum, for numbers near 0 are rounded least.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, batches: list, states: Sequence[Tensor]) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.expected = []
        for hidden in self._last(states):
            total = torch.stack([part.logsumexp(-1) for part in self._logits(hidden, 0)]).logsumexp(0)[:, None]
            self.expected.append((total, [part.exp() for part in self._logits(hidden, total)]))
        self.own = self._cross_entropy(states)

    def divergence(self, states: Sequence[Tensor]) -> float:
        """Mean KL divergence, in nats per token, of what the head makes of these last hidden states."""
        return max((self._cross_entropy(states) - self.own).mean().item(), 0.0)

    def _cross_entropy(self, states: Sequence[Tensor]) -> Tensor:
        """Of every token, float64: the logarithm of the sum of exp(logits), less the logit that p expects."""
        found = []
        for (total, expected), hidden in zip(self.expected, self._last(states), strict=True):
            sums, wanted = [], 0.0
            for p, logits in zip(expected, self._logits(hidden, total), strict=True):
                sums.append(logits.logsumexp(-1))
                wanted = wanted + torch.linalg.vecdot(p, logits).double()
            found.append(torch.stack(sums).double().logsumexp(0) - wanted)
        return torch.cat(found)

    def _logits(self, hidden: Tensor, total: Tensor | int) -> Iterator[Tensor]:
        """Less `total`, (tokens, at most `COLUMNS`) float32, for one part of the vocabulary after the other."""
        head = self.model.get_output_embeddings()
        weights = head.weight.split(COLUMNS)
        biases = [None] * len(weights) if head.bias is None else head.bias.split(COLUMNS)
        for weight, bias in zip(weights, biases, strict=True):
            yield nn.functional.linear(hidden, weight, bias).float().sub_(total)

    def _last(self, states: Sequence[Tensor]) -> Iterator[Tensor]:
        """What enters the head, (tokens, width), for every batch."""
        for batch, hidden in zip(self.batches, states, strict=True):
            with _giving(self.layers, hidden):
                yield self.model.base_model(**batch, use_cache=False).last_hidden_state.flatten(0, 1)


class _Given(nn.Module):
    """Stands in for a layer and gives the hidden states that are known already."""

    def __init__(self, layer: nn.Module, states: Tensor) -> None:
        super().__init__()
        self.states, self.attention_type = states, getattr(layer, "attention_type", None)

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.states


@contextmanager
def _giving(layers: nn.ModuleList, states: Tensor) -> Iterator[None]:
    """Let the model run its embedding and final norm only, whatever its family calls them."""
    own = list(layers)
    for index, layer in enumerate(own):
        layers[index] = _Given(layer, states)
    try:
        yield
    finally:
        for index, layer in enumerate(own):
            layers[index] = layer


def expected_divergences(
    found: Divergences, residuals: Residuals, shape: LayerShape, multiple_of: int
) -> list[dict[Module, list[float]]]:
    """The divergence to expect of every module of every layer at every allowed size.

    Straight lines between the measured points, in the logarithms of residual and divergence; outside them the
    divergence is proportional to the residual. The full size costs nothing.
    """
    expected = []
    for index, layer in enumerate(residuals):
        expected.append({})
        for module, residual in layer.items():
            points = {size: kl for (at, of, size), kl in found.items() if (at, of) == (index, module)}
            sizes = torch.tensor(sizes_of(getattr(shape, module), units_of(shape, multiple_of)[module]))
            expected[-1][module] = _interpolate(residual, points, sizes).tolist()
    return expected


def _interpolate(residual: Tensor, points: Mapping[int, float], sizes: Tensor) -> Tensor:
    """(len(sizes),) float64, never rising with size."""
    if not points:  # the full size is the only one
        return torch.zeros(len(sizes), dtype=torch.float64)
    residual = residual.double()
    x = residual.clamp(min=NEGLIGIBLE * residual.max().clamp(min=NEGLIGIBLE)).log()
    at = sorted(points, reverse=True)  # from the smallest residual to the largest
    known_x = x[at]
    known_y = torch.tensor([points[size] for size in at], dtype=torch.float64)
    known_y = known_y.clamp(min=RESOLUTION).cummax(0).values.log()
    wanted = x[sizes]
    right = torch.searchsorted(known_x.contiguous(), wanted.contiguous()).clamp(1, max(len(at) - 1, 1))
    if len(at) > 1:
        span = (known_x[right] - known_x[right - 1]).clamp(min=1e-12)
        slope = (known_y[right] - known_y[right - 1]) / span
        inside = known_y[right - 1] + slope * (wanted - known_x[right - 1])
    else:
        inside = known_y + (wanted - known_x)
    below, above = wanted < known_x[0], wanted > known_x[-1]
    inside = torch.where(below, known_y[0] + wanted - known_x[0], inside)
    inside = torch.where(above, known_y[-1] + wanted - known_x[-1], inside)
    loss = inside.exp()
    loss[residual[sizes] <= 0] = 0.0
    return loss.flip(0).cummax(0).values.flip(0)


def measured_allocation(
    curves: Curves, shape: LayerShape, ratio: float, multiple_of: int = 8
) -> tuple[Tensor, list[Ranks], float]:
    """The ranks that cost least within the budget, to within half of the finest unit.

    Returns:
        The sparsity of each layer (layers,), its ranks, and the sum of the divergences expected, in nats per token.

    Raises:
        ModegptError: no sizes of these modules meet the budget.
    """
    units, shrinking = units_of(shape, multiple_of), tuple(curves.expected[0])
    full = {module: getattr(shape, module) for module in MODULES}
    items = [(layer, module) for layer in range(len(curves.expected)) for module in shrinking]
    losses = [curves.expected[layer][module] for layer, module in items]
    sizes = {module: sizes_of(full[module], units[module]) for module in shrinking}
    whole = sum(shape.cost(module, full[module]) for module in MODULES if module not in shrinking)
    half_unit = min(shape.cost(module, min(units[module], full[module])) for module in shrinking) / 2
    budget = len(curves.expected) * ((1 - ratio) * shape.total - whole) + half_unit
    chosen = knapsack([[shape.cost(module, size) for size in sizes[module]] for _, module in items], losses, budget)
    found = [dict(full) for _ in curves.expected]
    for (layer, module), at in zip(items, chosen, strict=True):
        found[layer][module] = sizes[module][at]
    ranks = [shape.ranks(**layer) for layer in found]
    kept = torch.tensor([shape.kept(each) for each in ranks], dtype=torch.float64)
    return 1 - kept / shape.total, ranks, sum(item[at] for item, at in zip(losses, chosen, strict=True))
