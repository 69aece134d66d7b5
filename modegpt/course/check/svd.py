"""Checks of the lesson on value-output (arXiv 2408.09632, Theorem 3)."""

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_close, expect_tensor, passed, watched

WIDTH, DIM, OUT, RANK, GROUP = 10, 5, 12, 3, 3


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """C (WIDTH, WIDTH) of correlated inputs, W_V (WIDTH, DIM), W_O (DIM, OUT)."""
    x = _randn(80, WIDTH, seed=seed) @ (torch.eye(WIDTH) + 0.6 * _randn(WIDTH, WIDTH, seed=seed + 1))
    return x.mT @ x / len(x), _randn(WIDTH, DIM, seed=seed + 2), _randn(DIM, OUT, seed=seed + 3)


def _truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def _symmetric_root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.sqrt() @ vectors.mT


def _pair(result: object, rows: int, columns: int, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """The two matrices of a rank-RANK pair."""
    expect(isinstance(result, tuple | list) and len(result) == 2, f"return two matrices, {names[0]} and {names[1]}")
    first, second = result
    expect_tensor(first, (rows, RANK), names[0])
    expect_tensor(second, (RANK, columns), names[1])
    return first, second


def one_svd(function: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Exercise 05.1: one SVD of C^1/2 W_V W_O gives the pair of the paper's two.

    Args:
        function: (gram (n, n), value (n, d), output (d, m), rank) -> P (n, rank) and Q (rank, m).

    Raises:
        NotYet: the product is not the optimum; the message names the likely mistake.
    """
    for seed in (10, 20):
        gram, value, output = _problem(seed)
        product = value @ output
        half, lower = _symmetric_root(gram), torch.linalg.cholesky(gram)
        given = gram, value, output
        pair, work = watched(function, *given, RANK)
        p, q = _pair(pair, WIDTH, OUT, ("P", "Q"))
        found, wanted = (p @ q.to(p)).double(), torch.linalg.solve(half, _truncated(half @ product, RANK))
        u, s, vt = torch.linalg.svd(half @ value, full_matrices=False)
        early = torch.linalg.solve(half, u[:, :RANK] * s[:RANK] @ vt[:RANK] @ output)
        u, s, vt = torch.linalg.svd(half @ product, full_matrices=False)
        last = torch.linalg.solve(half, (u[:, :DIM] * s[:DIM] @ vt[:DIM])) - torch.linalg.solve(
            half, _truncated(half @ product, DIM - RANK)
        )
        mistakes = (
            (_truncated(product, RANK), "that is the SVD of the weights alone: C has no say in it"),
            (
                _truncated(half @ product, RANK),
                "C^(1/2) was never taken back: multiply the left factor by C^(-1/2) at the end",
            ),
            (
                torch.linalg.solve(gram, _truncated(gram @ product, RANK)),
                "that weighs with C; the squared error is a norm weighted with its root, C^(1/2)",
            ),
            (early, "that truncates before W_O has been seen: the cut belongs to the SVD of the whole product"),
            (
                torch.linalg.solve(lower, _truncated(lower @ product, RANK)),
                "that root is the wrong way round: Cholesky gives C = L L^T, and the norm needs R^T R = C, so R = L^T",
            ),
            *(
                (
                    torch.linalg.solve(other, _truncated(root @ product, RANK)),
                    "the SVD used one root and the inverse another: solve with the matrix that the SVD saw",
                )
                for root, other in ((lower.mT, lower), (lower, lower.mT))
            ),
            (
                torch.linalg.solve(half, u[:, :RANK] @ vt[:RANK]),
                "the singular values are missing: put them into P or into Q",
            ),
            (
                torch.linalg.solve(half, u[:, :RANK] * s[:RANK] ** 2 @ vt[:RANK]),
                "the singular values went into both factors: once is enough",
            ),
            (last, "those are the smallest singular values: keep the largest"),
        )
        for mistake, message in mistakes:
            expect(not close(found, mistake, 1e-6), message)
        message = "P Q is not the best pair: it should be C^(-1/2) times the cut SVD of C^(1/2) W"
        expect_close(p @ q.to(p), wanted, message)
        svds = sum(count for name, count in work.calls.items() if "svd" in name)
        expect(
            svds < 2,
            f"the pair is right, but it took {svds} SVDs: multiply the three matrices first, then one is enough",
        )
    passed("one SVD, the same pair.")


def orthonormal_outputs(function: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Exercise 05.2: the shortcut through the d x d Gram matrix, with orthonormal rows in the new W_O.

    Args:
        function: (gram of the values (d, d), value (n, d), output (d, m), rank) -> value (n, rank), output (rank, m).

    Raises:
        NotYet: the product is not the optimum, or the rows of the new W_O are not orthonormal.
    """
    for seed in (30, 40):
        wide, value, output = _problem(seed)
        gram = value.mT @ wide @ value
        lower = torch.linalg.cholesky(gram)
        root = lower.mT
        given = gram, value, output
        p, q = _pair(answer(function, *given, RANK), WIDTH, OUT, ("the new W_V", "the new W_O"))
        found, cut = (p @ q.to(p)).double(), _truncated(root @ output, RANK)
        u, s, vt = torch.linalg.svd(root @ output, full_matrices=False)
        mistakes = (
            (value @ _truncated(output, RANK), "that is the SVD of W_O alone: the Gram matrix G has no say in it"),
            (value @ cut, "R^-1 is missing: the new W_V is W_V R^-1 U_k S_k"),
            (
                value @ torch.linalg.solve(lower, _truncated(lower @ output, RANK)),
                "that takes L for the root: Cholesky gives G = L L^T, and R^T R = G needs R = L^T",
            ),
            (
                value @ torch.linalg.solve(lower, cut),
                "the SVD used R but the inverse used R^T: solve with the same matrix",
            ),
            (
                value @ torch.linalg.solve(gram, _truncated(gram @ output, RANK)),
                "that weighs with G itself; the squared error needs a root of it, R^T R = G",
            ),
            (
                value @ torch.linalg.solve(root, u[:, :RANK] @ vt[:RANK]),
                "the singular values are missing: with orthonormal rows in W_O they belong to W_V",
            ),
            (
                value @ torch.linalg.solve(root, u[:, :RANK] * s[:RANK] ** 2 @ vt[:RANK]),
                "the singular values came in twice: once is enough",
            ),
        )
        for mistake, message in mistakes:
            expect(not close(found, mistake, 1e-6), message)
        wanted = value @ torch.linalg.solve(root, cut)
        message = "the product is not the best one of that rank: compare it with the lesson's pair"
        expect_close(p @ q.to(p), wanted, message)
        expect(
            close((q @ q.mT).double(), torch.eye(RANK, dtype=torch.float64), 1e-6),
            "the product is right, but the rows of the new W_O are not orthonormal: move the singular values to W_V",
        )
    passed("the product of the paper, and every scale sits in W_V.")


def solve_output(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 05.3: the best new W_O for values that have been chosen, whatever chose them.

    Args:
        function: (gram of the values (d, d), chosen (d, k), output (d, m)) -> output (k, m); new values are V chosen.

    Raises:
        NotYet: another W_O has a smaller error; the message names the likely mistake.
    """
    for seed in (50, 60):
        wide, value, output = _problem(seed)
        gram = value.mT @ wide @ value
        for chosen in (_randn(DIM, RANK, seed=seed + 4), torch.eye(DIM, dtype=torch.float64)[:, [0, 2, 3]]):
            found = answer(function, gram, chosen, output)
            expect_tensor(found, (RANK, OUT), "the new W_O")
            seen = chosen.mT @ gram
            wanted = torch.linalg.solve(seen @ chosen, seen @ output)
            if close(found.double(), wanted):
                continue
            mistakes = (
                (torch.linalg.pinv(chosen) @ output, "that fits W_O, not the outputs V W_O: weigh both sides with G"),
                (chosen.mT @ output, "that keeps the old W_O and solves nothing: V M Q should be near V W_O"),
                (seen @ output, "the left side is missing: solve with M^T G M"),
                (torch.linalg.solve(chosen.mT @ chosen, seen @ output), "G is missing on the left: solve with M^T G M"),
                (torch.linalg.solve(seen @ chosen, chosen.mT @ output), "G is missing on the right: M^T G W_O"),
                (
                    torch.linalg.solve(seen @ gram @ chosen, seen @ gram @ output),
                    "that weighs with G twice: the squared error is tr(D^T G D)",
                ),
                (
                    chosen.mT @ torch.linalg.inv(gram) @ chosen @ seen @ output,
                    "take the block first, then invert: M^T G^-1 M is not (M^T G M)^-1",
                ),
            )
            for mistake, message in mistakes:
                expect(close(mistake, wanted) or not close(found.double(), mistake, 1e-6), message)
            expect_close(found, wanted, "another W_O has a smaller error: at the best one M^T G (W_O - M Q) is zero")
    passed("the best outputs for values that are given: select, then solve again, as in the MLP.")


def smallest_joint_rank(function: Callable[[Tensor, Tensor, float], int]) -> None:
    """Exercise 05.4: the smallest rank whose error, over a whole group, stays within a budget.

    Args:
        function: (gram of the values (d, d), W_O of the group (g, d, m), budget) -> rank, 1 <= rank <= d.

    Raises:
        NotYet: a wrong rank; the message names the likely mistake.
    """
    budgets = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5]
    for group, seed in ((GROUP, 70), (1, 80), (GROUP, 90)):
        dim = 16
        x = _randn(200, dim, seed=seed) @ (torch.eye(dim) + 0.5 * _randn(dim, dim, seed=seed + 1))
        gram = x.mT @ x / len(x)
        fade = torch.logspace(0, -0.8, dim, dtype=torch.float64)[:, None]
        output = fade * _randn(group, dim, 2 * dim, seed=seed + 2)
        root = torch.linalg.cholesky(gram).mT
        results = [answer(function, gram, output, budget) for budget in budgets]
        for result in results:
            whole = isinstance(result, Integral) or (isinstance(result, Tensor) and result.numel() == 1)
            expect(whole and int(result) == result, f"the rank should be one whole number, it is {result!r}")
        found = [int(result) for result in results]

        def ranks(matrix: Tensor, power: int = 2, keep: bool = False) -> list[int]:
            return [_rank(torch.linalg.svdvals(matrix) ** power, 1 - b if keep else b) for b in budgets]

        stacked = torch.cat(list(output), dim=1)
        wanted = ranks(root @ stacked)
        if found == wanted:
            continue
        mistakes = [
            (ranks(root @ stacked, power=1), "the error is the sum of the squared singular values: square them"),
            (ranks(root @ stacked, power=4), "those are fourth powers: singular values of R W_O are squared once"),
            (ranks(root @ stacked, keep=True), "the budget bounds what is discarded, not what is kept"),
            (ranks(stacked), "those are the singular values of W_O alone: weigh it with a root of G"),
            (ranks(gram @ stacked), "that weighs with G itself; the squared error needs a root of it, R^T R = G"),
            (ranks(root.mT @ stacked), "that takes L for the root: Cholesky gives G = L L^T, so R = L^T"),
            ([rank + 1 for rank in wanted], "one too many: the sum of what is discarded starts behind the kept ones"),
            ([min(rank + 1, dim) for rank in wanted], "one too many: a rank that meets the budget exactly is enough"),
            (
                [rank - 1 for rank in wanted],
                "one too few: return how many are kept, not the index of the last",
            ),
            ([max(rank - 1, 1) for rank in wanted], "one too few: the rank returned exceeds the budget"),
        ]
        if group > 1:
            each = [ranks(root @ one) for one in output]
            mistakes += [
                ([max(r) for r in zip(*each, strict=True)], "that is a rank for each query head alone: stack them"),
                ([sum(r) for r in zip(*each, strict=True)], "that adds ranks of the query heads: stack them instead"),
                ([-(-sum(r) // group) for r in zip(*each, strict=True)], "that averages ranks: stack the heads"),
                (each[0], "that looks at the first query head only: one W_V serves them all"),
                (
                    ranks(root @ output.mean(0)),
                    "that averages W_O over the group: stack the heads side by side",
                ),
                (
                    ranks(root @ output.reshape(dim, -1)),
                    "reshape mixes dims of different heads: put the heads side by side with torch.cat(..., dim=1)",
                ),
                (
                    ranks((root @ output).flatten(0, 1)),
                    "that puts the heads one below the other: one W_V serves them side by side, dim=1",
                ),
            ]
        for mistake, message in mistakes:
            expect(found != mistake, message)
        at = next(index for index, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        expect(False, f"for a budget of {budgets[at]:g} the smallest rank is {wanted[at]}, not {found[at]}")
    passed("the rank is known before anything is compressed.")


def _rank(powers: Tensor, budget: float) -> int:
    """The smallest rank >= 1 such that the discarded share of `powers` is within the budget."""
    for rank in range(1, len(powers)):
        if powers[rank:].sum() <= budget * powers.sum():
            return rank
    return len(powers)
