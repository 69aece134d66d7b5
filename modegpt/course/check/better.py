"""Checks of notebook 12: a divergence, what lies between two measured sizes, a knapsack, half of an error."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_close, expect_tensor, near, number, passed


def divergence(function: Callable) -> None:
    """Exercise 12.1: `divergence(dense, small)`, logits (tokens, vocabulary) of both -> mean KL, nats per token.

    Raises:
        NotYet: naming the direction, the axis, the mean or the logarithm that is off, or an overflow.
    """
    draw = torch.Generator().manual_seed(0)
    for tokens, words in ((5, 7), (6, 4), (3, 3)):
        dense, small = (2 * torch.randn(tokens, words, generator=draw, dtype=torch.float64) for _ in range(2))
        p, q = dense.softmax(-1), small.softmax(-1)
        each = (p * (p / q).log()).sum(-1)
        right = each.mean().item()
        found = number(answer(function, dense, small), "the divergence")
        down = dense.softmax(0), small.softmax(0)
        mistakes = (
            (-right, "a divergence is at least 0, yours has the wrong sign"),
            (
                (q * (q / p).log()).sum(-1).mean(),
                "that is KL(small || dense): weigh with the dense model's distribution",
            ),
            (each.sum(), "that is the sum over the tokens: take their mean"),
            (each.mean() / words, "that is divided by the vocabulary too: add up over the words, mean over tokens"),
            (each.mean() / torch.tensor(2.0).log(), "that is in bits: nats take the natural logarithm"),
            (
                (down[0] * (down[0] / down[1]).log()).sum(0).mean(),
                "the softmax runs over the tokens: take the last axis",
            ),
            (
                (down[0] * (down[0] / down[1]).log()).sum(-1).mean(),
                "the softmax runs over the tokens: take the last axis",
            ),
            ((p * (dense - small)).sum(-1).mean(), "the logits are not normalised: take the softmax of both first"),
            (-(p * q.log()).sum(-1).mean(), "that is the cross-entropy: the dense model's own entropy is still in it"),
            (
                (p.mean(0) * (p.mean(0) / q.mean(0)).log()).sum(),
                "the distributions are averaged first: take one divergence a token, then the mean",
            ),
        )
        for wrong, message in mistakes:
            expect(near(float(wrong), right) or not near(found, float(wrong)), message)
        expect(near(found, right), f"the mean divergence is {right:.4g}, yours is {found:.4g}")
    far = torch.tensor([[0.0, -3000.0], [1500.0, 0.0]], dtype=torch.float64)
    value = float(answer(function, far, far.flip(1)))
    expect(near(value, 2250), f"logits 3,000 apart give {value:g}: take log_softmax, not the logarithm of a softmax")
    passed("one divergence a token, weighed with the dense model's distribution, and their mean")


def _between(E: Tensor, measured: dict[int, float], size: int) -> float:
    (small, large), x = sorted(measured), E.log()
    a, b = (torch.tensor(measured[k], dtype=torch.float64).log() for k in (small, large))
    if size < small or size > large:
        anchor = small if size < small else large
        return measured[anchor] * (E[size] / E[anchor]).item() if E[size] > 0 else 0.0
    return (b + (a - b) * (x[size] - x[large]) / (x[small] - x[large])).exp().item()


def between(function: Callable) -> None:
    """Exercise 12.2: `between(E, measured, size)` -> the divergence to expect at `size`.

    Raises:
        NotYet: naming the scale that is not logarithmic, the size taken for the residual, or a wrong end.
    """
    sizes = torch.arange(13, dtype=torch.float64)
    cases = (
        ((12 - sizes) ** 1.7 * 3, {4: 0.9, 9: 0.07}),
        (torch.expm1((12 - sizes) / 3), {6: 0.2, 10: 0.011}),
    )
    for E, measured in cases:
        (small, large), log = sorted(measured), {k: torch.tensor(v).double().log() for k, v in measured.items()}
        for size in (small, large, small + 2, small - 3, large + 1, len(E) - 1):
            right = _between(E, measured, size)
            found = number(answer(function, E, dict(measured), size), f"the divergence at size {size}")
            expect(found >= 0, "a divergence is at least 0")
            if size == len(E) - 1:
                expect(found < 1e-12, "the full size loses nothing: E is 0 there, and the divergence too")
            elif size in measured:
                expect(near(found, right), f"at a measured size the measured value stands: {right:g}, not {found:g}")
            elif small < size < large:
                t = (E[size] - E[large]) / (E[small] - E[large])
                s = (size - large) / (small - large)
                mistakes = (
                    (measured[large] + (measured[small] - measured[large]) * t, "that is a line in E and D themselves"),
                    (
                        (log[large] + (log[small] - log[large]) * s).exp(),
                        "that goes by the size: the residual E[size] says how much is lost",
                    ),
                    (
                        measured[large] + (measured[small] - measured[large]) * s,
                        "that goes by the size, and not by logarithms: take log E and log D",
                    ),
                    ((log[large] + (log[small] - log[large]) * t).exp(), "E has to be taken as a logarithm too"),
                    (measured[small] * E[size] / E[small], "between the two sizes both measurements count"),
                    (measured[large] * E[size] / E[large], "between the two sizes both measurements count"),
                )
                for wrong, message in mistakes:
                    expect(not near(found, float(wrong)), message)
                expect(near(found, right), f"between the two it should be {right:.4g}, yours is {found:.4g}")
            else:
                x = E.log()
                line = (log[large] + (log[small] - log[large]) * (x[size] - x[large]) / (x[small] - x[large])).exp()
                expect(not near(found, line.item()), "outside the two sizes D is proportional to E: no line goes on")
                other = large if size < small else small
                wrong = measured[other] * (E[size] / E[other]).item()
                expect(not near(found, wrong), "outside, start from the measured size that is nearer")
                expect(near(found, right), f"outside it should be {right:.4g}, yours is {found:.4g}")
    passed("a line in the logarithms of residual and divergence, and in proportion beyond its ends")


def cheapest(function: Callable) -> None:
    """Exercise 12.3: `cheapest(costs, losses, budget)` -> for every module the index of its size; the exact optimum.

    Raises:
        NotYet: naming a budget that is exceeded, a greedy choice, or one module at a time.
    """
    draw = torch.Generator().manual_seed(3)
    cases = [([[0, 10], [0, 6], [0, 5]], [[9, 0], [6, 0], [4.9, 0]], 11)]  # the best price first would waste 1
    cases += [([[1, 4, 6], [2, 3, 9]], [[8.0, 3.0, 1.0], [9.0, 7.5, 0.0]], 9)]  # the budget is met exactly
    for modules, most in ((3, 40), (4, 60), (4, 95), (2, 15)):
        steps = torch.randint(3, 15, (modules, 5), generator=draw).cumsum(1)
        falls = torch.rand(modules, 5, generator=draw, dtype=torch.float64)
        losses = falls.flip(1).cumsum(1).flip(1) - falls[:, -1:]
        cases.append((steps.tolist(), losses.tolist(), most))
    for costs, losses, budget in cases:
        every = [
            (sum(loss[i] for loss, i in zip(losses, at, strict=True)), list(at))
            for at in product(*(range(len(cost)) for cost in costs))
            if sum(cost[i] for cost, i in zip(costs, at, strict=True)) <= budget
        ]
        least = min(every)[0]
        found = answer(function, costs, losses, budget)
        expect(isinstance(found, list | tuple | Tensor), "return a list: for every module the index of its size")
        chosen = [int(number(i, "an index")) for i in found]
        expect(len(chosen) == len(costs), f"there are {len(costs)} modules, and you chose {len(chosen)} sizes")
        inside = all(0 <= i < len(cost) for i, cost in zip(chosen, costs, strict=True))
        expect(inside, "return indices into each module's list of sizes, not the costs themselves")
        spent = sum(cost[i] for cost, i in zip(costs, chosen, strict=True))
        expect(spent <= budget, f"that spends {spent} of a budget of {budget}")
        lost = sum(loss[i] for loss, i in zip(losses, chosen, strict=True))
        expect(
            lost <= least + 1e-9,
            f"that loses {lost:.4g}, and {least:.4g} is possible within {budget}: the best price first, or one module "
            "after the other, may leave some of the budget unused; try all combinations, a few hundred at most",
        )
    passed("of all choices within the budget, the one that loses least")


def half_corrected(function: Callable) -> None:
    """Exercise 12.4: `half_corrected(W, Z, own, wanted, share, ridge)` -> the corrected W, (n, width).

    Raises:
        NotYet: naming a share that is turned round, a missing residual, a ridge or a matrix that is forgotten.
    """
    draw = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    for tokens, n, width, share, ridge in ((40, 5, 3, 0.5, 0.1), (30, 4, 6, 0.25, 0.03), (25, 4, 4, 1.0, 0.5)):
        W, Z = noise(n, width), noise(tokens, n) * torch.arange(1, n + 1)
        own = Z @ W + 0.5 * noise(tokens, width)
        wanted = own + 0.7 * noise(tokens, width) + 0.3
        gram, eye = Z.mT @ Z, torch.eye(n, dtype=torch.float64)
        damped = gram + ridge * gram.diagonal().mean() * eye

        def solved(target: Tensor, matrix: Tensor = damped, start: Tensor = W, inputs: Tensor = Z) -> Tensor:
            return start + torch.linalg.solve(matrix, inputs.mT @ target)

        target = (1 - share) * own + share * wanted
        right = solved(target - Z @ W)
        found = answer(function, W, Z, own, wanted, share, ridge)
        expect_tensor(found, (n, width), "the corrected W")
        plain = gram + ridge * eye
        mistakes = (
            (W, "nothing was corrected"),
            (right - W, "that is only what to add: the corrected matrix is W plus it"),
            (solved(target), "the target still holds what Z W gives already: subtract Z W, or W is counted twice"),
            (solved(target, start=0 * W), "the ridge pulls towards 0 there: solve for the change of W, then add W"),
            (solved(wanted - Z @ W), "that corrects all of the error, whatever the share"),
            (solved(own - Z @ W), "that corrects the module's own error only: the share of the earlier one is missing"),
            (solved(share * own + (1 - share) * wanted - Z @ W), "the share is turned round: it belongs to `wanted`"),
            (solved(own + share * wanted - Z @ W), "both targets in full: own counts 1 - share"),
            (solved(target - Z @ W, gram), "without the ridge a few tokens fit noise"),
            (solved(target - Z @ W, plain), "the ridge is relative: multiply it by the mean of the diagonal"),
            (
                solved(target - Z @ W, gram + ridge * gram.diagonal().sum() * eye),
                "the ridge is a multiple of the mean of the diagonal, not of its sum",
            ),
            (2 * W - right, "the correction has the wrong sign: the error is target minus Z W"),
        )
        for wrong, message in mistakes:
            expect(close(right, wrong, 1e-7) or not close(found.double(), wrong, 1e-7), message)
        expect_close(found, right, "that is not W plus the ridge regression of the error on Z")
    passed("a ridge regression of the error, with the share that belongs to earlier layers")
