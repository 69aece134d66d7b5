"""Global sparsity allocation: Block Influence scores -> sparsity of each layer -> ranks that meet the budget.

MoDeGPT (arXiv 2408.09632), section 3.3, equations 10 and 11: maximise sum_l s_l (1 - phi_l) + epsilon * entropy(phi)
with mean(phi) = ratio, solved by phi = L * ratio * softmax(-s / epsilon). That form keeps every phi_l <= 1 only where
epsilon is large enough. The cap, with which the solution is the best one for every epsilon, is this kit's.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from modegpt.checks import check_ratio
from modegpt.errors import ModegptError

DEFAULT_CAP = 0.9  # of one layer; above it a layer is better dropped whole
TOKENS_PER_CHANNEL = 10


def few_tokens(tokens: int, channels: int) -> bool:
    """Whether a regression on so many MLP channels would fit noise: fewer than ten tokens for each."""
    return tokens < TOKENS_PER_CHANNEL * channels


def uniform_allocation(layers: int, ratio: float) -> Tensor:
    """The same sparsity in every layer, (layers,) float64."""
    check_ratio(ratio)
    return torch.full((layers,), ratio, dtype=torch.float64)


def softmax_allocation(scores: Tensor, ratio: float, epsilon: float = 0.2, cap: float = DEFAULT_CAP) -> Tensor:
    """Sparsity of each layer from its importance: phi = L * ratio * softmax(-scores / epsilon), capped.

    A layer that the softmax would take beyond `cap` gets exactly `cap`, and the others share what is left by the
    same softmax, until none exceeds it. The mean stays `ratio`.

    Args:
        scores: importance of each layer, such as Block Influence, (layers,).
        ratio: mean sparsity, in [0, 1).
        epsilon: temperature > 0; larger is flatter.
        cap: largest sparsity of one layer, in (0, 1].

    Returns:
        phi, (layers,) float64, mean exactly `ratio`.

    Raises:
        ModegptError: an option out of range, non-finite scores, or ratio > cap (no allocation can reach it).
    """
    check_ratio(ratio)
    if not epsilon > 0:
        raise ModegptError(f"epsilon is a temperature and must be positive, got {epsilon:g}")
    if not 0 < cap <= 1:
        raise ModegptError(f"cap is the largest sparsity of one layer and lies in (0, 1], got {cap:g}")
    if ratio > cap:
        raise ModegptError(f"a ratio of {ratio:g} cannot be reached when no layer may lose more than {cap:g}")
    if not torch.isfinite(scores).all():
        raise ModegptError("the layers' scores hold NaN or inf")
    logits = -scores.double() / epsilon
    capped = torch.zeros(len(scores), dtype=torch.bool)
    while True:
        share = torch.softmax(logits.masked_fill(capped, -torch.inf), 0)
        phi = share * (len(scores) * ratio - cap * int(capped.sum()))
        phi[capped] = cap
        over = (phi > cap) & ~capped
        if not over.any():
            return phi
        capped |= over
        if capped.all():  # ratio == cap, up to rounding
            return torch.full_like(phi, cap)


Module = Literal["query_key", "value", "mlp"]
MODULES: tuple[Module, ...] = ("query_key", "value", "mlp")  # from the coarsest unit to the finest


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer, and what one unit of each costs in parameters.

    `query_key` and `value` are dims per head, `mlp` is channels. The costs are parameters per dim (all heads
    together) and per channel; `pair` is the least number of query-key dims that go together (2 with rotary).
    """

    query_key: int
    value: int
    mlp: int
    query_key_cost: int
    value_cost: int
    mlp_cost: int
    pair: int = 2

    def cost(self, module: Module, size: int) -> int:
        """Parameters of a module of that size."""
        return size * getattr(self, f"{module}_cost")

    def parameters(self, query_key: int, value: int, mlp: int) -> int:
        """Parameters of the layer's matrices at the given sizes."""
        return self.cost("query_key", query_key) + self.cost("value", value) + self.cost("mlp", mlp)

    @property
    def total(self) -> int:
        """Parameters of the layer's matrices before compression."""
        return self.parameters(self.query_key, self.value, self.mlp)

    def ranks(self, query_key: int, value: int, mlp: int) -> "Ranks":
        """What a layer of these sizes keeps."""
        return Ranks(query_key, value, mlp)

    def sizes(self, ranks: "Ranks") -> dict[Module, int]:
        """The sizes of a layer that keeps so much."""
        return {module: getattr(ranks, module) for module in MODULES}

    def kept(self, ranks: "Ranks") -> int:
        """Parameters of a layer's matrices that keeps so much."""
        return self.parameters(**self.sizes(ranks))


@dataclass(frozen=True)
class SharedShape(LayerShape):
    """Sizes of a layer whose queries and keys may go through one projection, see `decompose.shared_projection`.

    `query_key` is the rank of that projection. The largest, which would save nothing, stands for the layer as it is,
    with heads of `head_dim` dims and `whole` parameters.
    """

    head_dim: int = 0
    whole: int = 0

    @classmethod
    def of(cls, shape: LayerShape, width: int) -> Self:
        """That of a layer of hidden states of this width."""
        whole = shape.cost("query_key", shape.query_key)
        both = width + whole // width  # one rank more: a column in front, a row behind
        changes = {"query_key": whole // both, "query_key_cost": both, "pair": 1}
        return cls(**asdict(shape) | changes, head_dim=shape.query_key, whole=whole)

    def cost(self, module: Module, size: int) -> int:
        return self.whole if (module, size) == ("query_key", self.query_key) else super().cost(module, size)

    def ranks(self, query_key: int, value: int, mlp: int) -> "Ranks":
        return Ranks(self.head_dim, value, mlp, query_key if query_key < self.query_key else 0)

    def sizes(self, ranks: "Ranks") -> dict[Module, int]:
        return super().sizes(ranks) | {"query_key": ranks.shared or self.query_key}


@dataclass(frozen=True)
class Ranks:
    """What one layer keeps: query-key dims and value dims per head, MLP channels.

    `shared` is the rank of the projection that all its queries and keys go through; 0 if there is none.
    """

    query_key: int
    value: int
    mlp: int
    shared: int = 0


def ranks_for(phi: Tensor, shape: LayerShape, multiple_of: int = 8, modules: Sequence[Module] = MODULES) -> list[Ranks]:
    """Turn sparsities into ranks that spend the parameter budget, to within half a unit.

    Ranks are multiples of `multiple_of` (or the full size). Head dims are few and coarse, and on SmolLM2-135M a
    parameter there is worth more than one in the MLP, so they are rounded up. The MLP channels, whose unit is the
    finest, then pay in every layer for what the heads took, rounded by largest remainder: the kept parameters differ
    from (1 - mean(phi)) * total by at most half of one MLP unit, the parameters of `multiple_of` channels. Without the
    MLP among the `modules` the last of them pays.

    Args:
        phi: sparsity of each layer, (layers,).
        shape: sizes and costs; every layer has the same.
        multiple_of: hardware granularity of the ranks, >= 1.
        modules: the modules that shrink, and bear the whole budget; the others stay as they are.

    Raises:
        ModegptError: `multiple_of` out of range, an unknown module, or no such ranks meet the budget.
    """
    if multiple_of < 1:
        raise ModegptError(f"multiple_of must be at least 1, got {multiple_of}")
    if not modules or set(modules) - set(MODULES) or len(set(modules)) < len(modules):
        raise ModegptError(f"modules are one or more of {', '.join(MODULES)}, got {', '.join(modules) or 'none'}")
    full = {module: getattr(shape, module) for module in MODULES}
    cost = {module: getattr(shape, f"{module}_cost") for module in MODULES}
    units = units_of(shape, multiple_of)
    *others, payer = (module for module in MODULES if module in modules)

    gone = phi.double() * shape.total
    keep = 1 - gone / sum(full[module] * cost[module] for module in modules)
    if keep.min() < 0:
        raise ModegptError(f"{', '.join(modules)} alone cannot bear this ratio: at most {share_of(shape, modules):.1%}")
    ranks = {module: [full[module]] * len(phi) for module in MODULES}
    for module in others:
        sizes = sizes_of(full[module], units[module])
        ranks[module] = [_round_up(k * full[module], sizes) for k in keep.tolist()]
    spent = sum(cost[module] * torch.tensor(ranks[module]).double() for module in MODULES if module != payer)
    wanted = (shape.total - gone - spent) / cost[payer]  # what each layer can still afford
    unit = units[payer]
    ranks[payer] = _round_to_total(wanted.tolist(), sizes_of(full[payer], unit), min(unit, full[payer]) / 2, unit)
    return [Ranks(**dict(zip(ranks, sizes, strict=True))) for sizes in zip(*ranks.values(), strict=True)]


def knapsack(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Choose one size for every item so that the losses add up to least within the budget.

    A multiple-choice knapsack. Every item starts at its smallest size. Then steps along the lower convex hulls of the
    items are bought, the one that takes most loss away per parameter first, as a Lagrange multiplier would choose; a
    step that no longer fits is passed over, and its item stays. That is the optimum of the problem without whole
    numbers, so the sum is at most one step's gain above the best.

    Args:
        costs: parameters of every item's sizes, ascending.
        losses: what each of these sizes loses.
        budget: parameters in all.

    Returns:
        The index of the size of every item.

    Raises:
        ModegptError: even the smallest sizes cost more than the budget.
    """
    left = budget - sum(item[0] for item in costs)
    if left < 0:
        raise ModegptError(
            f"the smallest sizes of all modules keep {sum(item[0] for item in costs):,} parameters, and the ratio "
            f"leaves {budget:,.0f}: lower the ratio"
        )
    steps = []
    for item, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        hull = _lower_hull(cost, loss)
        for before, after in pairwise(hull):
            price, gain = cost[after] - cost[before], loss[before] - loss[after]
            steps.append((-gain / price, item, before, after, price))
    chosen = [0] * len(costs)
    for _, item, before, after, price in sorted(steps):
        if chosen[item] == before and price <= left:
            chosen[item] = after
            left -= price
    return chosen


def _lower_hull(cost: Sequence[int], loss: Sequence[float]) -> list[int]:
    """Indices of the points of the lower convex hull from the first to the point of least loss."""
    hull: list[int] = []
    for point in range(min(range(len(loss)), key=loss.__getitem__) + 1):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (loss[b] - loss[a]) * (cost[point] - cost[a]) < (loss[point] - loss[a]) * (cost[b] - cost[a]):
                break
            hull.pop()
        hull.append(point)
    return hull


def share_of(shape: LayerShape, modules: Sequence[Module]) -> float:
    """Share of a layer's parameters that these modules hold."""
    return sum(getattr(shape, module) * getattr(shape, f"{module}_cost") for module in modules) / shape.total


def units_of(shape: LayerShape, multiple_of: int) -> dict[Module, int]:
    """The step between two allowed sizes of each module."""
    return {"query_key": math.lcm(shape.pair, multiple_of), "value": multiple_of, "mlp": multiple_of}


def sizes_of(full: int, unit: int) -> list[int]:
    """The allowed sizes, ascending: multiples of `unit` below the full size, and the full size."""
    return [*range(unit, full, unit), full]


def _round_up(wanted: float, sizes: list[int]) -> int:
    return sizes[bisect_left(sizes, wanted - 1e-9)]


def _round_to_total(wanted: list[float], sizes: list[int], half_unit: float, unit: int) -> list[int]:
    """Round every entry to an allowed size so that the sums agree within half a unit."""
    at = [max(bisect_left(sizes, w + 1e-9) - 1, 0) for w in wanted]  # rounded down, at least the smallest
    short = sum(wanted) - sum(sizes[i] for i in at)
    while abs(short) > half_unit + 1e-6:
        step = 1 if short > 0 else -1
        movable = [layer for layer, i in enumerate(at) if 0 <= i + step < len(sizes)]
        if not movable:
            raise ModegptError(f"no ranks in multiples of {unit} meet the budget: lower the ratio or the granularity")
        # one unit to the layer whose wish it then misses least
        layer = min(movable, key=lambda m: abs(sizes[at[m] + step] - wanted[m]))
        short -= sizes[at[layer] + step] - sizes[at[layer]]
        at[layer] += step
    return [sizes[i] for i in at]
