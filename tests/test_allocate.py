"""Allocation of the sparsity and rounding to ranks: optimal, exact, and refused where impossible."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from modegpt.allocate import LayerShape, Ranks, knapsack, ranks_for, softmax_allocation, uniform_allocation
from modegpt.errors import ModegptError

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def cases() -> list[tuple[Tensor, float, float, float]]:
    """Scores, ratio, epsilon, cap: many, with the extremes where caps bite and where ratio = cap."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    found = []
    for _ in range(500):
        scores = torch.rand(draw.randint(1, 40), generator=generator, dtype=torch.float64)
        if draw.random() < 0.2:
            scores = scores.round(decimals=1)  # ties
        cap = draw.choice([0.3, 0.5, 0.8, 0.9, 1.0])
        ratio = min(draw.choice([0.0, 0.01, 0.27, 0.3, 0.5, 0.8, 0.9, 0.95, draw.random()]), cap, 0.99)
        found.append((scores, ratio, 10 ** draw.uniform(-7, 2), cap))
    return found


def llama(width: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> LayerShape:
    cost = width * (heads + kv_heads)
    return LayerShape(head_dim, head_dim, mlp, query_key_cost=cost, value_cost=cost, mlp_cost=3 * width)


SHAPES = {
    "smollm2-135m": llama(576, 9, 3, 64, 1536),
    "llama-2-7b": llama(4096, 32, 32, 128, 11008),
    "llama-3-8b": llama(4096, 32, 8, 128, 14336),
    "head dim 80": llama(2560, 32, 32, 80, 6912),
    "tiny": llama(48, 4, 2, 12, 100),
    "no rotary": LayerShape(64, 64, 3072, 1536, 1536, 1536, pair=1),
}


def test_two_layers_by_hand():
    """exp(-0.1 / 0.2) : exp(-0.3 / 0.2) = e : 1."""
    phi = softmax_allocation(torch.tensor([0.1, 0.3]), ratio=0.25, epsilon=0.2)
    assert phi.tolist() == pytest.approx([0.5 * math.e / (1 + math.e), 0.5 / (1 + math.e)])
    assert phi.dtype == torch.float64


def test_equal_to_a_numerical_maximiser_of_the_regularised_objective():
    scores = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio, epsilon = 0.3, 0.4
    free = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([free], max_iter=200, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        phi = 7 * ratio * free.softmax(0)
        value = -(scores * (1 - phi)).sum() + epsilon * (phi * phi.log()).sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert_close(softmax_allocation(scores, ratio, epsilon), 7 * ratio * free.softmax(0), rtol=1e-5, atol=0)


def test_the_cap_keeps_the_allocation_optimal(cases):
    """Karush-Kuhn-Tucker: phi = min(cap, c exp(-s / epsilon)) with one c for all layers."""
    bitten = 0
    for scores, ratio, epsilon, cap in cases:
        if epsilon < 0.01 or ratio == 0:
            continue  # exp would underflow here
        phi = softmax_allocation(scores, ratio, epsilon, cap)
        level = phi.log() + scores / epsilon
        free = phi < cap
        bitten += not free.all()
        if free.any():
            assert level[free].max() - level[free].min() < 1e-9
            assert level[~free].tolist() == [] or level[~free].max() <= level[free].min() + 1e-9
    assert bitten > 30


def test_the_more_important_layer_never_loses_more(cases):
    for scores, ratio, epsilon, cap in cases:
        phi = softmax_allocation(scores, ratio, epsilon, cap)[scores.argsort()]
        assert (phi.diff() <= 1e-12).all()


def test_the_mean_is_exact(cases):
    for scores, ratio, epsilon, cap in cases:
        assert softmax_allocation(scores, ratio, epsilon, cap).mean().item() == pytest.approx(ratio, rel=0, abs=1e-14)


def test_no_layer_leaves_its_range(cases):
    for scores, ratio, epsilon, cap in cases:
        phi = softmax_allocation(scores, ratio, epsilon, cap)
        assert phi.min() >= -1e-15 and phi.max() <= cap


def test_a_tiny_epsilon_empties_the_least_important_layers_one_after_the_other():
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2])
    assert softmax_allocation(scores, 0.5, 1e-9, cap=0.8).tolist() == pytest.approx([0, 0.8, 0.4, 0.8])


def test_a_large_epsilon_or_equal_scores_are_uniform():
    wanted = uniform_allocation(5, 0.3)
    assert_close(softmax_allocation(torch.rand(5), 0.3, epsilon=1e9), wanted)
    assert_close(softmax_allocation(torch.full((5,), 0.2), 0.3, epsilon=1e-3), wanted)


def test_adding_a_constant_to_all_scores_changes_nothing():
    scores = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(softmax_allocation(scores + 100, 0.3), softmax_allocation(scores, 0.3))


@pytest.mark.parametrize("layers", [1, 7])
def test_a_ratio_at_the_cap_takes_every_layer_to_the_cap(layers):
    for cap in (0.3, 0.7, 0.9):
        assert softmax_allocation(torch.arange(layers).double(), cap, 0.1, cap).tolist() == pytest.approx(
            [cap] * layers
        )


def test_one_layer_loses_the_whole_ratio():
    assert softmax_allocation(torch.tensor([0.7]), 0.6).tolist() == pytest.approx([0.6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": -0.1}, r"lies in \[0, 1\), got -0.1"),
        ({"ratio": 1.0}, r"lies in \[0, 1\), got 1"),
        ({"ratio": math.nan}, r"lies in \[0, 1\), got nan"),
        ({"ratio": 0.95}, "ratio of 0.95 cannot be reached when no layer may lose more than 0.9"),
        ({"cap": 0.2}, "ratio of 0.3 cannot be reached when no layer may lose more than 0.2"),
        ({"epsilon": 0.0}, "epsilon .* must be positive, got 0"),
        ({"epsilon": -0.2}, "epsilon .* must be positive, got -0.2"),
        ({"epsilon": math.nan}, "epsilon .* must be positive, got nan"),
        ({"cap": 0.0}, r"cap .* lies in \(0, 1\], got 0"),
        ({"cap": 1.1}, r"cap .* lies in \(0, 1\], got 1.1"),
        ({"cap": math.nan}, r"cap .* lies in \(0, 1\], got nan"),
        ({"scores": torch.tensor([0.1, math.nan])}, "scores hold NaN or inf"),
        ({"scores": torch.tensor([0.1, math.inf])}, "scores hold NaN or inf"),
    ],
)
def test_impossible_options_are_refused_in_one_readable_line(change, message):
    options = {"scores": torch.tensor([0.1, 0.2]), "ratio": 0.3} | change
    with pytest.raises(ModegptError, match=message) as refusal:
        softmax_allocation(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, math.nan])
def test_uniform_allocation_refuses_a_bad_ratio(ratio):
    with pytest.raises(ModegptError, match="ratio"):
        uniform_allocation(3, ratio)


def allowed(full: int, unit: int) -> set[int]:
    """Multiples of the unit, and the full size."""
    return {*range(unit, full, unit), full}


@pytest.mark.parametrize("multiple_of", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("name", SHAPES)
def test_ranks_are_allowed_and_spend_the_budget_within_half_an_mlp_unit(name, multiple_of):
    shape, generator, solved = SHAPES[name], torch.Generator().manual_seed(0), 0
    pair_unit = math.lcm(shape.pair, multiple_of)
    for layers in (1, 2, 5, 30):
        for ratio in (0.0, 0.01, 0.1, 0.3, 0.5, 0.77, 0.9, 0.95):
            for epsilon in (1e-4, 0.1, math.inf):
                scores = torch.rand(layers, generator=generator)
                phi = softmax_allocation(scores, ratio, epsilon, cap=max(0.9, ratio))
                budget = ((1 - phi) * shape.total).sum().item()
                half_unit = multiple_of * shape.mlp_cost / 2
                # heads take the next size up
                heads = [
                    shape.parameters(
                        min(math.ceil(keep * shape.query_key / pair_unit - 1e-9) * pair_unit, shape.query_key),
                        min(math.ceil(keep * shape.value / multiple_of - 1e-9) * multiple_of, shape.value),
                        0,
                    )
                    for keep in (1 - phi).tolist()
                ]
                least = sum(heads) + layers * min(multiple_of, shape.mlp) * shape.mlp_cost
                if least > budget + half_unit + 1:
                    with pytest.raises(ModegptError, match="meet the budget"):
                        ranks_for(phi, shape, multiple_of)
                    continue

                ranks, solved = ranks_for(phi, shape, multiple_of), solved + 1
                assert len(ranks) == layers
                assert {r.query_key for r in ranks} <= allowed(shape.query_key, pair_unit)
                assert {r.value for r in ranks} <= allowed(shape.value, multiple_of)
                assert {r.mlp for r in ranks} <= allowed(shape.mlp, multiple_of)
                assert [shape.parameters(r.query_key, r.value, 0) for r in ranks] == heads
                kept = sum(shape.parameters(r.query_key, r.value, r.mlp) for r in ranks)
                assert abs(kept - budget) <= half_unit * (1 + 1e-6)
    assert solved > 40


@pytest.mark.parametrize("multiple_of", [1, 8])
def test_no_mlp_is_further_than_a_unit_from_what_its_layer_can_afford(multiple_of):
    shape, generator = SHAPES["smollm2-135m"], torch.Generator().manual_seed(0)
    for ratio in (0.1, 0.3, 0.5):
        phi = softmax_allocation(torch.rand(30, generator=generator), ratio)
        for keep, r in zip((1 - phi).tolist(), ranks_for(phi, shape, multiple_of), strict=True):
            surplus = keep * shape.total - shape.parameters(r.query_key, r.value, r.mlp)
            assert abs(surplus) <= multiple_of * shape.mlp_cost * (1 + 1e-6)


@pytest.mark.parametrize("multiple_of", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("name", SHAPES)
def test_ratio_0_keeps_every_size(name, multiple_of):
    shape = SHAPES[name]
    full = Ranks(shape.query_key, shape.value, shape.mlp)
    assert ranks_for(uniform_allocation(4, 0.0), shape, multiple_of) == [full] * 4
    assert ranks_for(softmax_allocation(torch.rand(4), 0.0), shape, multiple_of) == [full] * 4


def test_rotary_dims_are_even_whatever_the_unit():
    for multiple_of in (1, 3, 5, 7):
        for ratio in (0.1, 0.3, 0.5):
            for r in ranks_for(uniform_allocation(3, ratio), SHAPES["smollm2-135m"], multiple_of):
                assert r.query_key % 2 == 0


def test_a_layer_that_may_lose_everything_keeps_one_unit_and_the_others_pay_for_it():
    shape = SHAPES["smollm2-135m"]
    phi = torch.tensor([1.0, 0.0, 0.5])
    ranks = ranks_for(phi, shape, 8)
    assert ranks[0] == Ranks(8, 8, 8)
    kept = sum(shape.parameters(r.query_key, r.value, r.mlp) for r in ranks)
    assert abs(kept - 1.5 * shape.total) <= 4 * shape.mlp_cost


@pytest.mark.parametrize(("ratio", "multiple_of"), [(0.95, 8), (0.95, 32), (0.7, 64)])
def test_a_budget_below_the_smallest_ranks_is_refused(ratio, multiple_of):
    with pytest.raises(ModegptError, match=f"multiples of {multiple_of} meet the budget: lower the ratio"):
        ranks_for(uniform_allocation(3, ratio), SHAPES["tiny"], multiple_of)


def test_a_unit_wider_than_the_mlp_is_refused_rather_than_nothing_removed():
    with pytest.raises(ModegptError, match="meet the budget"):
        ranks_for(uniform_allocation(2, 0.3), SHAPES["smollm2-135m"], 4096)


@pytest.mark.parametrize("multiple_of", [0, -8])
def test_a_unit_below_1_is_refused(multiple_of):
    with pytest.raises(ModegptError, match=f"multiple_of must be at least 1, got {multiple_of}"):
        ranks_for(uniform_allocation(3, 0.3), SHAPES["tiny"], multiple_of)


def test_the_largest_llama_at_the_extremes_takes_no_time():
    shape = llama(8192, 64, 8, 128, 28672)
    for epsilon in (1e-6, 0.05):
        for multiple_of in (1, 64):
            phi = softmax_allocation(torch.linspace(0, 1, 126), 0.8, epsilon, cap=1.0)
            ranks = ranks_for(phi, shape, multiple_of)
            assert len(ranks) == 126


def knapsack_cases(convex: bool):
    draw = random.Random(0)
    for _ in range(200):
        costs, losses = [], []
        for _ in range(draw.randint(1, 4)):
            unit, sizes = draw.choice([1, 2, 3]), draw.randint(1, 5)
            costs.append([unit * (k + 1) for k in range(sizes)])
            steps = [draw.random() for _ in range(sizes)]
            steps = sorted(steps) if convex else steps
            losses.append(list(itertools.accumulate(steps))[::-1])
        low, high = (sum(item[end] for item in costs) for end in (0, -1))
        yield costs, losses, draw.randint(low, high)


def spent_and_lost(costs, losses, chosen):
    return tuple(sum(item[at] for item, at in zip(table, chosen, strict=True)) for table in (costs, losses))


@pytest.mark.parametrize("convex", [True, False])
def test_the_knapsack_is_within_one_step_of_the_best_choice(convex):
    """The best by trying all. What the greedy choice leaves is less than the gain of one step of some hull."""
    for costs, losses, budget in knapsack_cases(convex):
        spent, lost = spent_and_lost(costs, losses, knapsack(costs, losses, budget))
        options = (spent_and_lost(costs, losses, c) for c in itertools.product(*(range(len(x)) for x in costs)))
        best = min(loss for cost, loss in options if cost <= budget)
        step = max(item[a] - item[b] for item in losses for a in range(len(item)) for b in range(a, len(item)))
        assert spent <= budget and best - 1e-12 <= lost <= best + step + 1e-12


def test_the_knapsack_is_exact_where_all_steps_cost_the_same_and_gains_fall():
    for costs, losses, budget in knapsack_cases(convex=True):
        costs = [[k + 1 for k in range(len(item))] for item in costs]
        budget = max(min(budget, sum(item[-1] for item in costs)), len(costs))
        _, lost = spent_and_lost(costs, losses, knapsack(costs, losses, budget))
        options = (spent_and_lost(costs, losses, c) for c in itertools.product(*(range(len(x)) for x in costs)))
        assert lost == pytest.approx(min(loss for cost, loss in options if cost <= budget))


def test_a_knapsack_that_cannot_be_packed_is_refused():
    with pytest.raises(ModegptError, match="the smallest sizes of all modules keep 8 parameters"):
        knapsack([[3, 4], [5, 6]], [[1.0, 0.0]] * 2, 7)
