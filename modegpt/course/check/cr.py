"""The checks of notebook 04, CR for query-key."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modegpt.course.check.verdict import answer, close, expect, expect_close, expect_tensor, passed
from modegpt.decompose import cr_select


def _grams(generator: torch.Generator, *shape: int) -> Tensor:
    """Gram matrices of rows with very unequal columns and a mean, (..., d, d)."""
    *heads, tokens, d = shape
    rows = torch.randn(*heads, tokens, d, dtype=torch.float64, generator=generator)
    rows = (rows + 0.5) * torch.rand(*heads, 1, d, dtype=torch.float64, generator=generator).mul(2).exp()
    return rows.mT @ rows / tokens


def norm_scores(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 04.1: C (width, width), W_Q (group, width, d), W_K (width, d) -> scores (d,)."""
    generator = torch.Generator().manual_seed(0)
    for group, width, d in ((3, 12, 8), (1, 10, 6), (2, 7, 9)):
        C = _grams(generator, 40, width)
        W_Q = torch.randn(group, width, d, dtype=torch.float64, generator=generator)
        W_K = torch.randn(width, d, dtype=torch.float64, generator=generator)
        C_Q, C_K = W_Q.mT @ C @ W_Q, W_K.mT @ C @ W_K
        scores = answer(function, C, W_Q, W_K)
        expect_tensor(scores, (d,), "the scores")
        scores = scores.double()
        q, k = C_Q.diagonal(dim1=-2, dim2=-1), C_K.diagonal()
        target = (q * k).sqrt().sum(0)
        if close(scores, target, 1e-5):
            continue
        mistakes = {
            "these are the scores without the square root: a column norm of C^(1/2) is sqrt(C_ii)": (q * k).sum(0),
            "the scores of the query heads are multiplied; the score of a group is their sum": (q * k).sqrt().prod(0),
            "this is the mean over the group; sum the scores of its query heads": (q * k).sqrt().mean(0),
            "the power of the queries is summed before the root: take the root for each query head, then the sum": (
                q.sum(0) * k
            ).sqrt(),
            "this sums over the group without a root, and takes the root at the end": (q * k).sum(0).sqrt(),
            "these are the weight norms: the Gram matrix C of the inputs is missing": (
                W_Q.norm(dim=1) * W_K.norm(dim=0)
            ).sum(0),
            "these are the column norms of C_Q and C_K; the score has those of their square roots": (
                C_Q.norm(dim=1) * C_K.norm(dim=0)
            ).sum(0),
            "these scores know only the queries: multiply by the norm of the key dim": q.sqrt().sum(0),
            "these scores know only the keys: multiply by the norm of the query dim": k.sqrt(),
            "only the first query head of the group is scored": (q * k).sqrt()[0],
        }
        for message, wrong in mistakes.items():
            expect((group == 1 and close(wrong, target)) or not close(scores, wrong, 1e-5), message)
        expect(False, "the scores are not right: compare with sqrt(diag(W_Q^T C W_Q) * diag(W_K^T C W_K)), summed")
    passed("the norm score needs the diagonals of two Gram matrices, and a sum over the group")


def keep_pairs(function: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Exercise 04.2: C_Q (group, d, d), C_K (d, d), rank -> kept dims (rank,), where dims 2i and 2i + 1 are pair i."""
    generator = torch.Generator().manual_seed(1)
    for group, d, rank in ((3, 64, 24), (1, 16, 8), (4, 96, 40), (2, 20, 2)):
        C_Q, C_K = _grams(generator, group, 50, d), _grams(generator, 50, d)
        half, count = d // 2, rank // 2
        kept = answer(function, C_Q, C_K, rank)
        expect(isinstance(kept, Tensor), f"the kept dims should be a tensor, it is a {type(kept).__name__}")
        expect(tuple(kept.shape) != (2 * rank,), "rank counts dims, not pairs: keep rank // 2 pairs")
        expect_tensor(kept, (rank,), "the kept dims")
        expect(not kept.is_floating_point() and kept.dtype != torch.bool, "the kept dims should be integers")
        kept = kept.long().cpu()
        halves = torch.arange(d).view(half, 2).mT.flatten()  # the package has dim i turn with i + d/2
        target = halves[cr_select(*(C[..., halves, :][..., halves][None] for C in (C_Q, C_K)), rank)[0]].sort().values
        if torch.equal(kept, target):
            continue
        q, k = C_Q.diagonal(dim1=-2, dim2=-1), C_K.diagonal()
        chosen, right = set(kept.tolist()), set(target.tolist())
        expect(len(chosen) == rank, "a dim is kept twice")
        expect(chosen <= set(range(d)), f"dims run from 0 to {d - 1}")
        expect(chosen != right, "the right dims in the wrong order: ascending, so that partners are neighbours")
        single = (q * k).sqrt().sum(0).topk(rank).indices
        expect(chosen != set(single.tolist()), "these are the best single dims; keep 2i and 2i + 1 together")
        whole = all((dim ^ 1) in chosen for dim in chosen)
        expect(
            whole or not all((dim + half) % d in chosen for dim in chosen),
            "these are pairs (i, i + d/2), as in Hugging Face models; here dims 2i and 2i + 1 turn together",
        )
        expect(whole, "a kept dim has no partner: dims 2i and 2i + 1 turn together, both are kept or dropped")
        pair_q, pair_k = q[:, ::2] + q[:, 1::2], k[::2] + k[1::2]
        mistakes = {
            "these pairs have the smallest scores: keep the largest": -(pair_q * pair_k).sqrt().sum(0),
            "the scores of the query heads are multiplied; the score of a group is their sum": (
                (pair_q * pair_k).log().sum(0)
            ),
            "the power of the queries is summed before the root, or there is no root: "
            "take the root for each query head, then sum": (pair_q * pair_k).sum(0),
            "the joint score adds the power of both dims before the root; this adds the scores of two single dims": (
                (q * k).sqrt().sum(0).view(half, 2).sum(1)
            ),
            "the score of a pair must use both of its dims, these are chosen by the even dims alone": (
                (q * k).sqrt().sum(0)[::2]
            ),
            "only the first query head of the group is scored": (pair_q * pair_k)[0],
            "these pairs are chosen by the keys alone": pair_k,
            "these pairs are chosen by the queries alone": pair_q.sqrt().sum(0),
            "pair i is scored by the dims i and i + d/2, and kept as 2i and 2i + 1": (
                (q[:, :half] + q[:, half:]) * (k[:half] + k[half:])
            )
            .sqrt()
            .sum(0),
        }
        for message, wrong in mistakes.items():
            pairs = wrong.topk(count).indices
            expect(chosen != set(torch.cat([2 * pairs, 2 * pairs + 1]).tolist()), message)
        expect(False, "these are not the pairs of largest joint score")
    passed("whole pairs, whatever the layout: what turns together stays together")


def softmax_error(function: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> None:
    """Exercise 04.3: C_Q (group, d, d), C_K (d, d), mean_key (d,), kept (k,) -> mean squared centered logit error."""
    generator = torch.Generator().manual_seed(2)
    for group, d, rank in ((3, 10, 4), (1, 8, 3), (2, 12, 9)):
        query = torch.randn(group, 30, d, dtype=torch.float64, generator=generator) + 0.7
        key = torch.randn(25, d, dtype=torch.float64, generator=generator) + torch.linspace(-1, 2, d).double()
        C_Q, C_K, mean = query.mT @ query / 30, key.mT @ key / 25, key.mean(0)
        order = torch.randperm(d, generator=generator)
        kept, gone = order[:rank], order[rank:].sort().values
        error = query[..., gone] @ key[:, gone].mT  # straight from the definition
        target = (error - error.mean(-1, keepdim=True)).square().mean((1, 2)).sum()
        value = answer(function, C_Q, C_K, mean, kept)
        value = torch.as_tensor(value, dtype=torch.float64) if isinstance(value, int | float) else value
        expect_tensor(value, (), "the error")
        value = value.double()
        if close(value, target, 1e-6):
            continue

        centered = C_K - torch.outer(mean, mean)
        full, both, plain = C_Q.sum(0), C_Q.sum(0) * centered, C_Q.sum(0) * C_K

        def block(matrix: Tensor, dims: Tensor = gone) -> Tensor:
            return matrix[dims][:, dims]

        mistakes = {
            "the keys are not centered: their Gram matrix is C_K - m m^T": block(plain).sum(),
            "the mean key is added, not subtracted": block(full * (C_K + torch.outer(mean, mean))).sum(),
            "only the diagonal is summed: dims i and j of the dropped block meet too": block(both).diagonal().sum(),
            "this is the block of the kept dims: sum over the dropped ones": block(both, kept).sum(),
            "total minus kept block still holds the cross terms between kept and dropped dims": (
                both.sum() - block(both, kept).sum()
            ),
            "this is a product of two sums; multiply entry by entry, then sum the products": (
                block(full).sum() * block(centered).sum()
            ),
            "one index runs over all dims: both i and j are dropped dims": both[gone].sum(),
            "this is the mean over the group; sum its query heads": target / group,
            "only the first query head of the group is counted": block(C_Q[0] * centered).sum(),
            "this is the norm-score bound (sum of scores)^2, not the exact error": sum(
                (C.diagonal() * centered.diagonal())[gone].sqrt().sum().square() for C in C_Q
            ),
        }
        for message, wrong in mistakes.items():
            expect(close(wrong, target, 1e-6) or not close(value, wrong, 1e-6), message)
        expect(False, "the error is not right: sum C_Q o (C_K - m m^T) over the dropped block, for every query head")
    passed("the exact error that softmax can see: queries as they are, keys centered, the dropped block only")


def best_swap(function: Callable[[Tensor, Tensor], tuple[int, int, float]]) -> None:
    """Exercise 04.4: P (n, n), dropped (n,) bool -> (kept pair to drop, dropped pair to restore, change of E)."""
    generator = torch.Generator().manual_seed(3)
    for n, count in ((8, 3), (10, 5), (9, 7), (12, 4), (7, 1)):
        P = _grams(generator, 14, n) * _grams(generator, 14, n)
        size = P.diagonal().sqrt()
        P = P / torch.outer(size, size).pow(0.6)  # of more equal sizes, so that interactions decide
        dropped = torch.zeros(n, dtype=torch.bool)
        dropped[torch.randperm(n, generator=generator)[:count]] = True
        mask = dropped.to(P)
        before = mask @ P @ mask
        table = torch.full((n, n), torch.inf, dtype=torch.float64)
        for a in (~dropped).nonzero()[:, 0].tolist():
            for b in dropped.nonzero()[:, 0].tolist():
                after = mask.clone()
                after[a], after[b] = 1, 0
                table[a, b] = after @ P @ after - before
        result = answer(function, P, dropped)
        expect(isinstance(result, tuple | list) and len(result) == 3, "return three things: (a, b, change)")
        try:
            a, b, change = int(result[0]), int(result[1]), float(result[2])
        except (TypeError, ValueError, RuntimeError):
            expect(False, "a and b should be integers and the change a number")
        expect(0 <= a < n and 0 <= b < n, f"pairs run from 0 to {n - 1}")
        expect(not (dropped[a] and not dropped[b]), "a and b are exchanged: a is kept so far, b is dropped so far")
        expect(not dropped[a], "a is dropped already: only a kept pair can be dropped")
        expect(dropped[b], "b is still kept: only a dropped pair can be brought back")
        scale = 1e-6 * float(before.abs() + P.abs().max())
        best, true = float(table.min()), float(table[a, b])
        if abs(true - best) <= scale and abs(change - best) <= scale:
            continue
        r, own = P @ mask, P.diagonal()
        told = {
            "the change has the wrong sign: it is E after minus E before, negative if the swap helps": -true,
            "this is E after the swap: return the change, E after minus E before": true + float(before),
            "the two moves interact: - 2 P_ab is missing": true + 2 * float(P[a, b]),
            "the interaction of the two moves counts twice: - 2 P_ab, not - P_ab": true + float(P[a, b]),
            "the off-diagonal terms count twice: 2 r_a and 2 r_b": float(own[a] + r[a] + own[b] - r[b] - 2 * P[a, b]),
            "only the diagonal is used: the off-diagonal terms with the other dropped pairs are missing": float(
                own[a] - own[b]
            ),
            "bringing b back adds P_bb - 2 r_b: r_b holds P_bb itself, so its sign is plus": true - 2 * float(own[b]),
        }
        for message, wrong in told.items():
            expect(abs(wrong - true) <= scale or abs(change - wrong) > scale, message)
        expect(abs(change - true) <= scale, f"the change of E is not right for the swap that you return ({a}, {b})")
        finite = torch.where(table.isinf(), -torch.inf, table)
        expect(abs(true - float(finite.max())) > scale, "this is the worst swap: look for the lowest E")
        expect(False, "there is a better swap: try all kept a with all dropped b")
    passed("a swap changes E by P_aa + 2 r_a + P_bb - 2 r_b - 2 P_ab")


def best_pair(function: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Exercise 04.5: C_Q (d, d), C_K (d, d), rank -> M_Q, M_K (d, rank) with the least squared error of all logits.

    The new queries are q M_Q and the new keys k M_K; nothing rotates.
    """
    generator = torch.Generator().manual_seed(5)
    for d, rank in ((8, 3), (6, 1), (7, 5)):
        C_Q, C_K = _grams(generator, 60, d), _grams(generator, 60, d)
        pair = answer(function, C_Q, C_K, rank)
        expect(isinstance(pair, tuple | list) and len(pair) == 2, "return two matrices, M_Q and M_K")
        for M, name in zip(pair, ("M_Q", "M_K"), strict=True):
            expect_tensor(M, (d, rank), name)
        M_Q, M_K = pair
        found = M_Q @ M_K.to(M_Q).mT
        R_Q, R_K = (torch.linalg.cholesky(C).mT for C in (C_Q, C_K))

        def projector(C: Tensor) -> Tensor:
            vectors = torch.linalg.eigh(C).eigenvectors[:, -rank:]  # noqa: B023
            return vectors @ vectors.mT

        first = slice(rank)
        best = _undone(R_Q, R_K, first)
        kept = torch.zeros(d, dtype=torch.float64)
        kept[cr_select(C_Q[None, None], C_K[None], rank, rotary=False)[0]] = 1
        U, S, Vh = torch.linalg.svd(R_Q @ R_K.mT)
        eye = torch.eye(d, dtype=torch.float64)
        mistakes = {
            "that keeps the dims of the largest norm scores: nothing rotates, so any subspace may be kept": kept.diag(),
            "that keeps what the queries say most of: a logit also depends on what the keys can hear": projector(C_Q),
            "that keeps what the keys say most of: a logit also depends on the queries": projector(C_K),
            "that weighs with C_Q and C_K themselves: the squared error needs a root of each": _undone(C_Q, C_K, first),
            "that takes L for the root: Cholesky gives C = L L^T, and R^T R = C needs R = L^T": _undone(
                R_Q.mT, R_K.mT, first
            ),
            "the SVD is of R_Q R_K: the product of the logits is R_Q R_K^T": _undone(R_Q, R_K, first, R_Q @ R_K),
            "the roots were never undone: M_Q needs R_Q^-1, M_K needs R_K^-1": (U[:, first] * S[first]) @ Vh[first],
            "the singular values are missing from M_Q M_K^T": _undone(R_Q, R_K, first, power=0),
            "the singular values went into both factors: their roots in each, or all into one": _undone(
                R_Q, R_K, first, power=2
            ),
            "those are the smallest singular values: keep the largest": _undone(R_Q, R_K, slice(d - rank, d)),
        }
        for message, wrong in mistakes.items():
            expect(not close(found.double(), wrong, 1e-6), message)
        lost, least = (
            ((R_Q @ (eye - B) @ R_K.mT).norm() / (R_Q @ R_K.mT).norm()).item() for B in (found.double(), best)
        )
        expect_close(found, best, f"the logits are off by {lost:.3g}, the best pair of that rank is off by {least:.3g}")
    passed("one SVD, and no pair of that rank is nearer to all logits")


def _undone(left: Tensor, right: Tensor, keep: slice, middle: Tensor | None = None, power: float = 1) -> Tensor:
    """left^-1 M right^-T with M = left right^T cut to the singular values `keep`, each to a power."""
    U, S, Vh = torch.linalg.svd(left @ right.mT if middle is None else middle)
    cut = (U[:, keep] * S[keep] ** power) @ Vh[keep]
    return torch.linalg.solve(left, torch.linalg.solve(right, cut.mT).mT)
