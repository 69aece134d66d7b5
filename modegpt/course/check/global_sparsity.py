"""Checks of the lesson on the global allocation: Block Influence, the softmax, the cap, ranks."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.allocate import softmax_allocation
from modegpt.course.check.verdict import NotYet, answer, close, expect, expect_tensor, near, number, passed
from modegpt.errors import ModegptError


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masked_block_influence(function: Callable) -> None:
    """`function(x_in, x_out, mask)`: 1 - E[cos] over real tokens, a number.

    x_in and x_out are (batch, tokens, width), mask (batch, tokens) holds 1 at real tokens and 0 at padding.

    Raises:
        NotYet: with the likeliest mistake.
    """
    x_in = 3 * _random(0, 3, 8, 6) + 0.5
    x_out = x_in + _random(1, 3, 8, 6) * torch.linspace(0.2, 6, 8, dtype=torch.float64)[:, None]
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5, [0] * 2 + [1] * 6])
    x_out[0, 0] *= -1  # a negative cosine
    x_in[1, 6] = x_out[1, 6] = 0  # padding may hold anything
    value = number(answer(function, x_in, x_out, mask), "the Block Influence")

    dot, norms = (x_in * x_out).sum(-1), x_in.norm(dim=-1) * x_out.norm(dim=-1)
    cos, real = dot / norms.clamp(min=1e-8), mask.bool()
    right = 1 - cos[real].mean()
    wrong = {
        "that is the mean cosine: Block Influence is one minus it": cos[real].mean(),
        "the padding is counted: average over the tokens whose mask is 1": 1 - cos.mean(),
        "the sum runs over real tokens, the division over all: divide by mask.sum()": ((1 - cos) * mask).sum() / 24,
        "masked cosines of 0 are averaged too: leave the padding out of the mean": 1 - (cos * mask).mean(),
        "that averages each sequence first: every real token has the same weight": (
            ((1 - cos) * mask).sum(1) / mask.sum(1)
        ).mean(),
        "that is the cosine of the mean vectors: take the cosine of each token, then the mean": 1
        - torch.cosine_similarity(x_in[real].mean(0), x_out[real].mean(0), dim=0),
        "that divides a mean of products by a mean of norms, so long tokens weigh more: "
        "divide in each token, then average": 1 - dot[real].mean() / norms[real].mean(),
        "the mask holds integers, so x_in[mask] picks sequences 0 and 1: convert it with .bool() first": 1
        - cos[mask].mean(),
        "the mask is 1 at real tokens and 0 at padding: that takes the padding": 1 - cos[~real].mean(),
        "padding may stand in front too, as in the last sequence: go by the mask, not by the number of tokens": 1
        - torch.cat([row[:length] for row, length in zip(cos, mask.sum(1), strict=True)]).mean(),
        "the dot products are not divided by the two lengths: a cosine is": 1 - dot[real].mean(),
        "a cosine may be negative: take no absolute value": 1 - cos[real].abs().mean(),
        "that is the cosine of the flattened streams, so long tokens weigh more: one cosine per token": 1
        - torch.cosine_similarity(x_in[real].flatten(), x_out[real].flatten(), dim=0),
        "that compares lengths, not directions: Block Influence needs the cosine": (
            1 - (x_in[real].norm(dim=-1) / x_out[real].norm(dim=-1)).mean()
        ),
    }
    for message, mistake in wrong.items():
        expect(not near(value, mistake.item(), 1e-6), message)
    expect(
        near(value, right.item(), 1e-6),
        f"expected {right:.4f}, got {value:.4f}: one cosine per real token, then the mean",
    )
    passed("every real token counts once, padding never")


def sized_allocation(function: Callable) -> None:
    """`function(scores, sizes, ratio, epsilon)`: softmax allocation of layers that differ in parameters, (layers,).

    Maximises sum_l w_l (s_l (1 - phi_l) - epsilon phi_l log phi_l) with sum_l w_l phi_l = ratio sum_l w_l.

    Raises:
        NotYet: with the likeliest mistake.
    """
    scores = torch.tensor([0.7, 0.1, 0.05, 0.3, 0.2], dtype=torch.float64)
    sizes = torch.tensor([40, 10, 30, 20, 60], dtype=torch.float64)
    ratio, epsilon = 0.25, 0.4
    phi = answer(function, scores, sizes, ratio, epsilon)
    expect_tensor(phi, (5,), "phi")
    phi, total = phi.double(), sizes.sum()

    def scaled(weights: Tensor) -> Tensor:
        return ratio * total * weights / (sizes * weights).sum()

    bare, flipped = torch.exp(-scores / epsilon), torch.exp(scores / epsilon)
    share = torch.softmax(-scores / epsilon, 0)
    wrong = {
        "the sign of the exponent is turned: an influential layer should lose less": scaled(flipped),
        "the sign of the exponent is turned, and the sizes play no part": 5
        * ratio
        * torch.softmax(scores / epsilon, 0),
        "the factor L is missing (phi should not sum to the ratio): what must equal the ratio is the mean, "
        "weighted with the sizes": ratio * share,
        "that spends the budget as if all layers were of one size: weight the mean with the sizes": 5 * ratio * share,
        "that multiplies by epsilon: a larger temperature must be flatter": scaled(torch.exp(-scores * epsilon)),
        "that shares out parameters, so that a small layer loses a larger part: share out sparsities": (
            ratio * total * share / sizes
        ),
        "that is what stays of each layer: phi is what goes": 1 - scaled(bare),
        "the sizes are inside the exponential's weight too: they cancel in the gradient": scaled(sizes * bare),
    }
    for message, mistake in wrong.items():
        expect(not close(phi, mistake, 1e-6), message)
    removed = (sizes * phi).sum() / total
    expect(
        abs(removed - ratio) < 1e-6,
        f"{removed:.4f} of the parameters go instead of {ratio}: the mean of phi is weighted with the sizes",
    )
    expect(
        close(phi, scaled(bare), 1e-6),
        "the budget is met, but the gradients differ: phi_l is proportional to exp(-s_l / epsilon)",
    )
    equal = answer(function, scores, torch.full((5,), 7.0, dtype=torch.float64), ratio, epsilon)
    expect_tensor(equal, (5,), "phi of equal sizes")
    expect(
        close(equal.double(), softmax_allocation(scores, ratio, epsilon, cap=1.0), 1e-6),
        "with equal sizes this is not the formula for equal layers: use ratios of sizes, not their absolute values",
    )
    passed("the sizes change the scale of the allocation, not its shape")


def _filled(scores: Tensor, ratio: float, epsilon: float, caps: Tensor) -> Tensor:
    """min(caps, c exp(-scores / epsilon)) with the c whose mean is the ratio, (layers,) float64."""
    capped = torch.zeros(len(scores), dtype=torch.bool)
    while True:
        left = len(scores) * ratio - caps[capped].sum()
        phi = torch.where(capped, caps, left * torch.softmax((-scores / epsilon).masked_fill(capped, -torch.inf), 0))
        if not (phi > caps).any():
            return phi
        capped |= phi > caps


def capped_allocation(function: Callable) -> None:
    """`function(scores, ratio, epsilon, caps)`: softmax allocation, a cap for each layer, mean exactly `ratio`.

    All but `ratio` and `epsilon` are (layers,).

    Raises:
        NotYet: with the likeliest mistake.
    """
    scores = torch.tensor([0.9, 0.02, 0.3, 0.1, 0.12, 0.4], dtype=torch.float64)
    loose = torch.full_like(scores, 0.9)
    free = answer(function, scores, 0.2, 0.5, loose)
    expect_tensor(free, (6,), "phi")
    plain, turned = (softmax_allocation(s, 0.2, 0.5, 0.9) for s in (scores, -scores))
    expect(not close(free.double(), turned, 1e-6), "the sign of the exponent is turned: influential layers lose less")
    expect(
        not close(free.double(), plain / 6, 1e-6), "the factor L is missing: the mean of phi is the ratio, not its sum"
    )
    bisection = "to six digits (a bisection: a higher upper end, or more steps)"
    mean = free.double().mean()
    expect(abs(mean - 0.2) < 1e-6, f"the mean is {mean:.7f}, it must be 0.2 {bisection}")
    expect(close(free.double(), plain, 1e-6), "where nothing reaches a cap, phi is L * ratio * softmax(-s / epsilon)")

    # the fourth layer exceeds its cap only after the second and the fifth gave up, and the third only after that
    ratio, epsilon, caps = 0.45, 0.2, torch.tensor([0.6, 0.7, 0.4, 0.8, 0.5, 0.9], dtype=torch.float64)
    try:
        phi = answer(function, scores, ratio, epsilon, caps)
    except NotYet as stopped:
        refusal = stopped.__cause__
        expect(
            not isinstance(refusal, ModegptError),
            f"a mean of {ratio} can be met with caps of mean {caps.mean():.2f}, yours refuses it: {refusal}",
        )
        raise
    expect_tensor(phi, (6,), "phi")
    phi = phi.double()
    raw = 6 * ratio * torch.softmax(-scores / epsilon, 0)
    clipped, over = raw.minimum(caps), raw > caps
    evenly = torch.where(over, caps, raw + (raw - clipped).sum() / (~over).sum())
    once = torch.where(over, caps, raw * (6 * ratio - caps[over].sum()) / raw[~over].sum())
    expect(
        not close(phi, clipped, 1e-6),
        f"that clips and stops: the mean is {clipped.mean():.3f} instead of {ratio}; give the excess to the others",
    )
    expect(
        not close(phi, clipped * ratio / clipped.mean(), 1e-6),
        "rescaling all layers after the clip lifts the clipped ones over their caps again: rescale the others alone",
    )
    expect(
        not close(phi, once, 1e-6) and not close(phi, once.minimum(caps), 1e-6),
        "one round is not enough: what was given away lifted another layer over its cap; repeat until none exceeds it",
    )
    expect(not close(phi, evenly, 1e-6), "the excess is shared evenly: the others share it by the same softmax")
    for name, one in (("mean", caps.mean()), ("largest", caps.max())):
        same = softmax_allocation(scores, ratio, epsilon, one.item())
        expect(not close(phi, same, 1e-6), f"that takes the {name} cap for all layers: layer l has caps[l]")
    worst = (phi - caps).argmax()
    expect(phi[worst] <= caps[worst] + 1e-6, f"layer {worst} loses {phi[worst]:.3f}, more than its cap {caps[worst]}")
    expect(abs(phi.mean() - ratio) < 1e-6, f"the mean is {phi.mean():.7f}, it must be {ratio} {bisection}")
    expect(
        close(phi, _filled(scores, ratio, epsilon, caps), 1e-6),
        "caps and mean hold, but uncapped layers must stay proportional to exp(-s / epsilon)",
    )

    try:
        answer(function, scores, 0.7, epsilon, caps)
    except NotYet as stopped:
        refusal = stopped.__cause__
        expect(
            isinstance(refusal, ModegptError),
            f"an infeasible budget should raise a ModegptError: a ratio of 0.7, caps of mean 0.65; {stopped}",
        )
    else:
        expect(False, "a ratio of 0.7 is infeasible, the mean of these caps is 0.65: raise a ModegptError")
    passed("no layer exceeds its cap and the mean is exact")


def heads_and_channels(function: Callable) -> None:
    """`function(phi, d, d_cost, channels, channel_cost, multiple_of)`: (dims per head, channels) that a layer keeps.

    The dims are rounded up to a multiple of `multiple_of` (at least one multiple, at most d); the channels take the
    nearest whole number that meets the layer's budget.

    Raises:
        NotYet: with the likeliest mistake.
    """
    cases = [  # phi, d, d_cost, channels, channel_cost, multiple_of
        (0.3, 64, 1000, 1536, 50, 8),
        (0.5, 64, 1000, 1536, 50, 8),  # 32 is a multiple
        (0.02, 100, 1000, 1000, 50, 16),  # 96 is too few and 112 is more than there are
        (0.4, 64, 1000, 1536, 50, 16),  # 38.4 is nearer to 32 than to 48
        (0.9, 80, 700, 2000, 50, 1),  # 0.1 * 80 is 7.999999999999998 in floating point
        (0.7, 80, 700, 2000, 50, 1),  # 0.3 * 80 is 24.000000000000004 in floating point
        (0.45, 64, 1000, 1536, 50, 4),
    ]
    for case in cases:
        phi, d, d_cost, channels, channel_cost, multiple_of = case
        found = answer(function, *case)
        expect(isinstance(found, (tuple, list)) and len(found) == 2, "the answer is a pair: dims, channels")
        dims, kept = (number(rank, "each of the two") for rank in found)
        wanted = (1 - phi) * d
        up = min(-(-round(wanted, 6) // multiple_of) * multiple_of, d)
        down = wanted // multiple_of * multiple_of
        total = d * d_cost + channels * channel_cost
        exact = ((1 - phi) * total - up * d_cost) / channel_cost
        expect(
            dims == up or (dims, kept) != (round(exact), up),
            "the order is turned around: first the dims, then the channels",
        )
        expect(dims <= d, f"{dims:g} dims of {d}: a rank cannot exceed the full size")
        gone = -(-round(phi * d, 6) // multiple_of) * multiple_of
        expect(
            dims == up or dims != gone, f"phi = {phi:g} is what goes, not what stays: keep (1 - phi) of the {d} dims"
        )
        expect(
            dims == up or dims != down,
            f"{dims:g} of {d} dims at phi = {phi:g}: rounding down (or to the nearest) removes more than the budget "
            "says; round up",
        )
        expect(
            dims == up or dims != up + multiple_of or abs(wanted - up) > 1e-9,
            f"{dims:g} of {d} dims at phi = {phi:g}: (1 - {phi:g}) * {d} is a hair above {up:g} in floating point, so "
            "subtract a tiny number before you round up",
        )
        expect(dims == up, f"{dims:g} of {d} dims at phi = {phi:g}, multiples of {multiple_of}: expected {up:g}")
        own = (1 - phi) * channels
        expect(
            abs(kept - exact) <= 0.5 + 1e-6 or abs(kept - own) > 1,
            "the channels keep their own (1 - phi), so the rounded heads overspend: the channels must pay for them",
        )
        expect(
            abs(kept - exact) <= 0.5 + 1e-6,
            f"{up:g} dims and {kept:g} channels miss the budget by "
            f"{(kept - exact) * channel_cost:+.0f} parameters: {exact:.2f} channels would meet it (round)",
        )
        for rank, what in zip(found, ("dims", "channels"), strict=True):
            try:
                operator.index(rank)
            except TypeError:
                expect(False, f"{rank} {what}: ranks are whole numbers, int and not float")
    dims, _ = answer(function, 1.0, 64, 1000, 1536, 50, 8)
    expect(dims == 8, f"{dims} dims at phi = 1: one multiple stays, here 8")
    passed("the heads are rounded up and the channels pay")
