"""Checks of notebook 10: rows that share a weight, weights of their own for all entries, a rank for a whole model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_tensor, number, passed


def fwsvd(function: Callable) -> None:
    """Exercise 10.1: `fwsvd(W, rows, k)`, W (in, out), rows (in,) -> A (in, k), B (k, out).

    Raises:
        NotYet: naming a root, a side or an undoing that is missing, or a row of weight zero.
    """
    draw = torch.Generator().manual_seed(0)
    for n, m, k in ((7, 5, 2), (6, 6, 3)):
        W = torch.randn(n, m, generator=draw, dtype=torch.float64)
        rows = torch.rand(n, generator=draw, dtype=torch.float64) * 9 + 0.1
        product = _product(answer(function, W, rows, k), n, m, k)

        def cut(D: Tensor, undo: bool = True) -> Tensor:
            U, S, Vh = torch.linalg.svd(D[:, None] * W, full_matrices=False)  # noqa: B023
            low = (U[:, :k] * S[:k]) @ Vh[:k]  # noqa: B023
            return low / D[:, None] if undo else low

        D = rows.sqrt()
        mistakes = [
            (cut(torch.ones_like(D)), "that is the plain SVD: no weight was used"),
            (cut(rows), "the error is squared: multiply by the roots of the weights"),
            (cut(1 / D), "the weights are turned round: multiply before the SVD, divide after it"),
            (cut(D, undo=False), "the roots are still in A: divide its rows by them"),
        ]
        if n == m:
            U, S, Vh = torch.linalg.svd(W * D, full_matrices=False)
            mistakes.append(((U[:, :k] * S[:k]) @ Vh[:k] / D, "the weights are on the outputs: a row of W is an input"))
        for wrong, message in mistakes:
            expect(not close(product, wrong, 1e-6), message)
        _least(product, cut(D), rows[:, None] * torch.ones_like(W), W)
    rows = rows.clone()
    rows[2] = 0
    found = answer(function, W, rows, k)
    expect(
        all(bool(torch.isfinite(part).all()) for part in found),
        "a row that no loss depends on has weight 0, and you divide by its root: let the inverse cancel, or leave a"
        " tiny weight",
    )
    passed("one SVD, and no other matrix of that rank has a smaller weighted error")


def best_left(function: Callable) -> None:
    """Exercise 10.2: `best_left(W, weights, B)`, W and weights (in, out), B (k, out) -> A (in, k).

    Raises:
        NotYet: naming weights that were not used, or only in part.
    """
    draw = torch.Generator().manual_seed(1)
    for n, m, k in ((6, 5, 2), (4, 4, 1)):
        W = torch.randn(n, m, generator=draw, dtype=torch.float64)
        weights = torch.rand(n, m, generator=draw, dtype=torch.float64) * 5 + 0.05
        B = torch.randn(k, m, generator=draw, dtype=torch.float64)
        found = answer(function, W, weights, B)
        expect_tensor(found, (n, k), "A")
        found = found.double()

        def solved(row: Tensor) -> Tensor:
            return torch.stack([torch.linalg.solve((B * w) @ B.mT, (B * w) @ x) for w, x in zip(row, W, strict=True)])  # noqa: B023

        mistakes = (
            (solved(torch.ones_like(W)), "no weight was used: that is the least-squares A of all entries alike"),
            (solved(weights.mean(0).expand_as(W)), "all rows have the same weights there: every row of A has its own"),
            (solved(weights.sqrt()), "the weights go in as they are: their roots would be squared by nobody"),
            (solved(weights.square()), "the weights are squared: multiply once, or both sides by the root"),
            (solved(1 / weights), "the weights are turned round: an entry with a large weight has to fit better"),
            (W @ B.mT, "W B^T is the answer only if the rows of B are orthonormal, and the weights are all 1"),
        )
        for wrong, message in mistakes:
            expect(not close(found, wrong, 1e-6), message)
        _least(found @ B, solved(weights) @ B, weights, W)
    passed("with B fixed each row of A is a small weighted regression; only both together have no closed form")


def rank_of_all(function: Callable) -> None:
    """Exercise 10.3: `rank_of_all(removed, parameters, m, n, count)` -> the largest rank.

    Raises:
        NotYet: naming what the share was taken of, or a rank beside the largest one.
    """
    cases = ((0.3, 18_000_000, 384, 384, 64), (0.09, 103_000_000, 1536, 576, 90), (0.18, 66_000_000, 768, 768, 48))
    for removed, parameters, m, n, count in cases:

        def largest(left: float, m: int = m, n: int = n) -> int:
            return math.floor(left / (m + n) + 1e-9)

        right = largest(m * n - removed * parameters / count)
        got = number(answer(function, removed, parameters, m, n, count), "the rank")
        expect(got.is_integer(), f"a rank is a whole number, yours is {got:g}")
        mistakes = {
            largest((1 - removed) * m * n): "the share is of all the model's parameters, of which the matrices are only"
            " a part: they have to lose more",
            largest(m * n - removed * parameters): "that takes it all from one matrix: there are count of them",
            int((1 - removed) * min(m, n)): "that is a share of the ranks, which saves nothing near the full rank",
            largest(removed * parameters / count): "that is what is to go: what may stay?",
            right + 1: "that is one too large: the model has to lose at least the share",
            right - 1: "one more still loses enough",
        }
        mistakes.pop(right, None)
        expect(got not in mistakes, mistakes.get(int(got), ""))
        expect(got == right, f"the largest rank is {right}, yours is {got:g}")
    passed("equal size means the whole model's, also when only some matrices shrink")


def _product(found: object, n: int, m: int, k: int) -> Tensor:
    expect(isinstance(found, tuple | list) and len(found) == 2, "return two matrices: A and B")
    expect_tensor(found[0], (n, k), "A")
    expect_tensor(found[1], (k, m), "B")
    return found[0].double() @ found[1].double()


def _least(product: Tensor, best: Tensor, weights: Tensor, W: Tensor) -> None:
    mine, least = ((weights * (W - low).square()).sum().item() for low in (product, best))
    expect(mine < (1 + 1e-6) * least, f"the weighted error is {mine:.4g}, the least is {least:.4g}")
