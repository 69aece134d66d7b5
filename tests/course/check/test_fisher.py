import torch
from answers import Answers

from modegpt.course.check import fisher as check
from modegpt.methods.fwsvd import fisher_weighted_factors


def fwsvd(W, rows, k, *, D=None, undo=True):
    D = rows.sqrt() if D is None else D
    U, S, Vh = torch.linalg.svd(D[:, None] * W, full_matrices=False)
    A = U[:, :k] * S[:k]
    return (A / D[:, None] if undo else A), Vh[:k]


def _inverse_cancelled(W, rows, k):
    Vh = torch.linalg.svd(rows.sqrt()[:, None] * W, full_matrices=False).Vh[:k]
    return W @ Vh.mT, Vh


def _by_the_package(W, rows, k):
    left, right = fisher_weighted_factors(W.mT, rows)
    return right[:k].mT, left[:, :k].mT


def _on_the_outputs(W, rows, k):
    D = rows.sqrt()[: W.shape[1]] if len(rows) >= W.shape[1] else torch.ones(W.shape[1])
    U, S, Vh = torch.linalg.svd(W * D, full_matrices=False)
    return U[:, :k] * S[:k], Vh[:k] / D


def best_left(W, weights, B, *, change=lambda weights: weights):
    w = change(weights)[:, None]
    return torch.linalg.solve((B * w) @ B.mT, ((B * w) @ W[:, :, None])).squeeze(2)


def _by_least_squares(W, weights, B):
    solve = torch.linalg.lstsq
    rows = [solve((B * w.sqrt()).mT, (x * w.sqrt())[:, None]).solution for x, w in zip(W, weights, strict=True)]
    return torch.cat(rows, 1).mT


def _changes_weights(W, weights, B):
    return best_left(W, weights.mul_(2), B)


def rank(removed, parameters, m, n, count):
    return int((m * n - removed * parameters / count) // (m + n))


def _by_search(removed, parameters, m, n, count):
    fits = [r for r in range(min(m, n)) if count * (m * n - r * (m + n)) >= removed * parameters]
    return max(fits)


RIGHT = [
    (check.fwsvd, _inverse_cancelled),
    (check.fwsvd, _by_the_package),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows.clamp(min=1e-12), k)),
    (check.best_left, best_left),
    (check.best_left, _by_least_squares),
    (check.best_left, lambda W, weights, B: best_left(W, 3 * weights, B)),
    (check.rank_of_all, rank),
    (check.rank_of_all, _by_search),
]
WRONG = [
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k, D=torch.ones_like(rows)), "plain SVD"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k, D=rows), "roots of the weights"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k, D=rows**-0.5), "turned round"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k, undo=False), "still in A"),
    (check.fwsvd, _on_the_outputs, "on the outputs|the least is"),
    (check.fwsvd, fwsvd, "weight 0"),
    (check.fwsvd, lambda W, rows, k: [2 * part for part in fwsvd(W, rows, k)], "the least is"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k)[::-1], "shape"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows, k)[0], "two matrices"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows.mul_(1), k + 1), "shape"),
    (check.fwsvd, lambda W, rows, k: fwsvd(W, rows.mul_(2), k), "its argument rows in place"),
    (check.best_left, lambda W, w, B: best_left(W, w, B, change=torch.ones_like), "no weight"),
    (check.best_left, lambda W, w, B: best_left(W, w, B, change=lambda w: w.mean(0).expand_as(w)), "all rows"),
    (check.best_left, lambda W, w, B: best_left(W, w, B, change=torch.sqrt), "go in as they are"),
    (check.best_left, lambda W, w, B: best_left(W, w, B, change=torch.square), "are squared"),
    (check.best_left, lambda W, w, B: best_left(W, w, B, change=torch.reciprocal), "turned round"),
    (check.best_left, lambda W, w, B: W @ B.mT, "orthonormal"),
    (check.best_left, lambda W, w, B: best_left(W, w, B).mT, "shape"),
    (check.best_left, lambda W, w, B: best_left(W, w, B) + 0.01, "the least is"),
    (check.best_left, _changes_weights, "its argument weights in place"),
    (check.rank_of_all, lambda r, p, m, n, c: rank(r, m * n * c, m, n, c), "of all the model's parameters"),
    (check.rank_of_all, lambda r, p, m, n, c: rank(r, p, m, n, 1), "from one matrix"),
    (check.rank_of_all, lambda r, p, m, n, c: int((1 - r) * min(m, n)), "share of the ranks"),
    (check.rank_of_all, lambda r, p, m, n, c: int(r * p / c / (m + n)), "what may stay"),
    (check.rank_of_all, lambda *given: rank(*given) + 1, "one too large"),
    (check.rank_of_all, lambda *given: rank(*given) - 1, "one more"),
    (check.rank_of_all, lambda *given: rank(*given) + 0.5, "whole number"),
    (check.rank_of_all, lambda *given: rank(*given) - 2, "the largest rank is"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG
