"""Checks of the notebook on Nyström for the MLP."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from modegpt.course.check import verdict
from modegpt.course.check.verdict import answer, expect, expect_tensor, passed, watched
from modegpt.decompose import leverage_scores


def close(value: Tensor, target: Tensor) -> bool:
    """Loose enough for an identity matrix in float32, torch's default."""
    return verdict.close(value, target, 1e-6)


def _activations(tokens: int, channels: int, seed: int) -> Tensor:
    """Correlated channels of unequal power whose means are not zero, (tokens, channels) float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    power = torch.linspace(0.5, 2, channels, dtype=torch.float64)[torch.randperm(channels, generator=random)]
    mixed = normal(tokens, channels) @ (torch.eye(channels, dtype=torch.float64) + 0.4 * normal(channels, channels))
    return mixed * power + normal(channels)


def _weights(channels: int, width: int, seed: int) -> Tensor:
    return torch.randn(channels, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leverage_few_tokens(function: Callable[[Tensor, float], Tensor]) -> None:
    """Exercise 03.1: `function(A, ridge)` gives the ridge leverage scores of the n channels of A (T, n), (n,).

    Raises:
        NotYet: the scores are not those of the Gram matrix A^T A / T, or an n x n matrix was made on the way.
    """
    tokens, channels = 7, 11
    for seed, ridge in ((0, 1.0), (1, 0.1)):
        A = _activations(tokens, channels, seed)
        C = A.mT @ A / tokens
        mean = C.diagonal().mean()
        eye, small = torch.eye(channels, dtype=A.dtype), torch.eye(tokens, dtype=A.dtype)
        scores, target = answer(function, A, ridge), leverage_scores(C, ridge)
        if isinstance(scores, Tensor) and scores.shape == (tokens,):
            expect(False, "these are the scores of the tokens (rows), one for each of T: the channels' are asked for")
        expect_tensor(scores, (channels,), "scores")
        scores = scores.to(target)
        if close(scores, target):
            continue

        def with_ridge(amount: Tensor | float, tokens_too: bool = True, A: Tensor = A, small: Tensor = small) -> Tensor:
            factor = tokens if tokens_too else 1
            return (A * torch.linalg.solve(A @ A.mT + factor * amount * small, A)).sum(0)

        inverse = torch.linalg.inv(C + ridge * mean * eye).diagonal()
        expect(
            not close(scores, with_ridge(ridge * mean, False)),
            "lambda belongs to C = A^T A / T, but A A^T is a sum over tokens: multiply lambda by T",
        )
        expect(
            not close(scores, with_ridge(ridge)) and not close(scores, with_ridge(ridge, False)),
            "ridge is relative: lambda = ridge * mean(diag C), not ridge itself",
        )
        expect(
            not close(scores, with_ridge(ridge * A.square().sum() / tokens**2)),
            "the mean of diag C is over the n channels, not over the T tokens",
        )
        expect(
            not close(scores, with_ridge(ridge * A.square().sum() / tokens)),
            "lambda is relative to the mean of diag C, not to its trace",
        )
        expect(
            not close(scores, with_ridge(ridge * A.square().sum() / channels)),
            "lambda is relative to the mean of diag C, and C = A^T A / T: the 1 / T is missing",
        )
        expect(
            not close(scores, with_ridge(ridge * C.mean())),
            "lambda is relative to the mean of diag C, not to that of all entries of C",
        )
        expect(not close(scores, with_ridge(0.0)), "the ridge is missing: solve with A A^T + T lambda I")
        expect(
            not close(scores, tokens * target),
            "the scores are T times too large: with A A^T / T in the system, one A carries a 1 / T too",
        )
        expect(not close(scores, 1 - target), "these are 1 - s: large where a channel should go. Return s")
        expect(
            not close(scores, inverse) and not close(scores, ridge * mean * inverse),
            "this is diag((C + lambda I)^-1): right order reversed; the score is 1 - lambda times it",
        )
        expect(
            not close(scores, C.diagonal()) and not close(scores, C.diagonal() / (C.diagonal() + ridge * mean)),
            "this looks at diag C alone, the activation energy: the correlations between channels are missing",
        )
        expect(
            False, "the scores differ from diag(C (C + lambda I)^-1) with C = A^T A / T, lambda = ridge * mean(diag C)"
        )
    tokens, channels = 3, 60
    A = _activations(tokens, channels, 2)
    _, work = watched(function, A, 1.0)
    expect(
        work.largest < channels**2,
        "the scores are right, but an n x n matrix was made on the way: solve a T x T system, and take mean(diag C), "
        "the mean of all squared entries of A, without making C",
    )
    passed("a T x T system gives the scores of all n channels")


def refit_with_intercept(function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Exercise 03.2: `function(C, mean, W_D, b_D, J)` gives V (k, width) and b (width,), the best linear map and bias.

    Raises:
        NotYet: another V or b does better.
    """
    tokens, channels, width = 60, 8, 3
    for seed, J in ((0, torch.tensor([1, 2, 5, 7])), (1, torch.tensor([0, 3, 6]))):
        A, W, bias = (
            _activations(tokens, channels, seed),
            _weights(channels, width, seed + 10),
            _weights(1, width, 5)[0],
        )
        C, mean = A.mT @ A / tokens, A.mean(0)
        ones = torch.ones(tokens, 1, dtype=A.dtype)
        solution = torch.linalg.lstsq(torch.cat([A[:, J], ones], 1), A @ W + bias).solution
        target_V, target_b = solution[:-1], solution[-1]
        result = answer(function, C, mean, W, bias, J)
        expect(isinstance(result, tuple | list) and len(result) == 2, "return two things: V (k, width) and b (width,)")
        V, b = result
        expect_tensor(V, (len(J), width), "V")
        expect_tensor(b, (width,), "b")
        V, b = V.to(target_V), b.to(target_b)
        if close(V, target_V) and close(b, target_b):
            continue
        centered = C - torch.outer(mean, mean)

        def fit(C: Tensor, J: Tensor = J, W: Tensor = W) -> Tensor:
            return torch.linalg.solve(C[J][:, J], C[J] @ W)

        if close(V, target_V):
            expect(
                not close(b, bias),
                "V is right, b is still b_D: the dropped channels' mean and the change of V must go into it",
            )
            expect(not close(b, target_b - bias), "V is right, but b forgot the old bias b_D")
            expect(not close(b, 2 * bias - target_b), "V is right; the sign of the shift in b is wrong")
            expect(False, "V is right; b should make the mean of the output right: mean W_D + b_D = mean[J] V + b")
        expect(not close(V, W[J]), "V is W_D[J] unchanged: the re-solve is missing")
        expect(
            not close(V, fit(C)),
            "this is the optimum without an intercept: center the Gram matrix first, C - outer(mean, mean)",
        )
        expect(
            not close(V, (torch.linalg.pinv(centered) @ centered @ W)[J])
            and not close(V, torch.linalg.inv(centered)[J] @ centered @ W)
            and not close(V, torch.linalg.inv(C)[J] @ C @ W)
            and not close(V, torch.linalg.inv(C)[J][:, J] @ C[J] @ W)
            and not close(V, torch.linalg.inv(centered)[J][:, J] @ centered[J] @ W),
            "you inverted all of C and then took J: take the block J, J first and invert that",
        )
        halves = ((centered[J][:, J], C[J] @ W), (C[J][:, J], centered[J] @ W))
        expect(
            not any(close(V, torch.linalg.solve(block, right)) for block, right in halves),
            "one side of the equations is centered, the other is not: both need C - outer(mean, mean)",
        )
        expect(not close(V, fit(C + torch.outer(mean, mean))), "the sign: the outer product of the means is taken away")
        number = C - mean @ mean
        expect(
            not close(V, fit(number)),
            "mean has one dimension, so mean.T @ mean is a number: use torch.outer(mean, mean)",
        )
        drop = torch.tensor([i for i in range(channels) if i not in J.tolist()])
        expect(
            not close(V, torch.linalg.solve(centered[J][:, J], centered[J][:, drop] @ W[drop])),
            "this is the correction alone: add W_D[J], or use all columns of C_J:",
        )
        expect(False, "V is not the least-squares optimum: solve with block J, J of the centered Gram matrix")
    passed("linear map and bias are the least-squares optimum")


def errors_of_all_cuts(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 03.3: `function(C, W_D, order)` gives the error of keeping order[:k] for k = 0 to n - 1, (n,).

    Raises:
        NotYet: an error differs from that of least squares on activations.
    """
    tokens, channels, width = 80, 7, 4
    for seed in (0, 1):
        A, W = _activations(tokens, channels, seed), _weights(channels, width, seed + 20)
        order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
        C = A.mT @ A / tokens

        def errors(order: Tensor, A: Tensor = A, W: Tensor = W) -> Tensor:
            fits = (A[:, (J := order[:k])] @ torch.linalg.lstsq(A[:, J], A @ W).solution for k in range(1, channels))
            missed = [A @ W, *(A @ W - fit for fit in fits)]
            return torch.stack([part.square().sum() / tokens for part in missed])

        value, target = answer(function, C, W, order), errors(order)
        expect_tensor(value, (channels,), "errors")
        value = value.to(target)
        if close(value, target):
            continue
        plain = torch.stack([(W[d].mT @ C[d][:, d] @ W[d]).trace() for d in (order[k:] for k in range(channels))])
        left = torch.linalg.cholesky(C[order][:, order])
        shifted = torch.cat([target[1:], target.new_zeros(1)])
        inverted = errors(order.argsort())
        expect(not close(value, inverted), "you permute with order.argsort(): take C[order][:, order] and W_D[order]")
        expect(not close(value, plain), "these are the errors without the re-solve: use the Schur complement, not C_DD")
        expect(not close(value, target.sqrt()), "these are square roots: the error is the squared Frobenius norm")
        expect(not close(value, tokens * target), "these are sums over tokens; C is a mean, so the errors are too")
        expect(not close(value, target / target[0]), "these are relative errors: do not divide by the error at k = 0")
        expect(not close(value, target.flip(0)), "right numbers, reversed: entry k keeps order[:k]")
        expect(not close(value, shifted), "off by one: entry 0 keeps nothing, entry k keeps order[:k]")
        expect(
            not close(value, errors(torch.arange(channels))),
            "the order is ignored: permute the rows and columns of C and the rows of W_D first",
        )
        unpermuted = torch.stack([(left[k:, k:].mT @ W[k:]).square().sum() for k in range(channels)])
        expect(not close(value, unpermuted), "C is permuted but W_D is not: use W_D[order]")
        unordered = torch.linalg.cholesky(C)
        half = torch.stack([(unordered[k:, k:].mT @ W[order][k:]).square().sum() for k in range(channels)])
        expect(not close(value, half), "W_D is permuted but C is not: use C[order][:, order]")
        rows = (left.mT @ W[order]).square().sum(1)
        expect(not close(value, rows), "that is what each channel adds: entry k is the sum from k to the end")
        expect(
            not close(value, rows.cumsum(0)) and not close(value, rows.cumsum(0) - rows),
            "that adds up what is kept: entry k is the error of what is dropped, the sum from k to the end",
        )
        upper = torch.stack([(left[k:, k:] @ W[order][k:]).square().sum() for k in range(channels)])
        summed = (left @ W[order]).square().sum(1).flip(0).cumsum(0).flip(0)
        expect(
            not close(value, upper) and not close(value, summed),
            "the factor is on the wrong side: tr(W^T L L^T W) is the squared norm of L^T W, not of L W",
        )
        expect(not close(value, errors(order.flip(0))), "you keep the end of the order: entry k keeps order[:k]")
        expect(False, "the errors differ from tr(W_D^T E W_D) with E = C - C_:J C_JJ^-1 C_J:, J = order[:k]")
    passed("one Cholesky factor gives the error of every cut")


def cheapest_channel(function: Callable[[Tensor, Tensor], tuple[int, float]]) -> None:
    """Exercise 03.4: `function(C, W_D)` gives the channel whose removal costs least after the re-solve, and the cost.

    Raises:
        NotYet: another channel is cheaper, or the cost is wrong.
    """
    tokens, channels, width = 80, 9, 4
    for seed in (0, 6, 11):  # the smallest row of W_D is the cheapest channel in the first two only
        A, W = _activations(tokens, channels, seed), _weights(channels, width, seed + 30)
        W = W * torch.linspace(2, 0.7, channels, dtype=torch.float64)[:, None]
        C = A.mT @ A / tokens
        kept = [torch.tensor([i for i in range(channels) if i != j]) for j in range(channels)]
        fits = [A[:, J] @ torch.linalg.lstsq(A[:, J], A @ W).solution for J in kept]
        costs = torch.stack([(A @ W - fit).square().sum() / tokens for fit in fits])
        result = answer(function, C, W)
        expect(isinstance(result, tuple | list) and len(result) == 2, "return two things: the channel and its cost")
        expect(
            all(isinstance(part, int | float | Tensor) for part in result), "the channel and its cost should be numbers"
        )
        channel, cost = (torch.as_tensor(part, dtype=torch.float64) for part in result)
        expect(channel.numel() == 1 and cost.numel() == 1, "return one channel and one cost, not one of each channel")
        best = int(costs.argmin())
        expect(
            not (close(channel.reshape(()), costs[best]) and float(cost) == best),
            "the order is turned around: first the channel, then its cost",
        )
        try:
            channel = operator.index(result[0])
        except TypeError:
            expect(False, f"the channel should be an index, an int: it is {result[0]!r}")
        cost = cost.reshape(())
        power, inverse = W.square().sum(1), torch.linalg.inv(C).diagonal()
        expect(0 <= channel < channels, f"the channel should be an index from 0 to {channels - 1}, got {channel}")
        if channel == best and verdict.near(cost.item(), costs[best].item(), 1e-4):  # an inverse in float32 will do
            continue
        mistakes = {
            "dividing by [C^-1]_jj, not multiplying by it": power * inverse,
            "[C^-1]_jj, not C_jj: C_jj ||W_j||^2 is the cost without the re-solve": power * C.diagonal(),
            "1 / [C^-1]_jj, not 1 / C_jj": power / C.diagonal(),
            "the square of the row norm, not the norm": power.sqrt() / inverse,
            "the rows of W_D too: 1 / [C^-1]_jj alone ignores what the channel is worth": 1 / inverse,
            "rows of W_D, not columns": W[:, :1].square().sum(1) / inverse,
            "C too, not the weights alone": power,
        }
        for hint, values in mistakes.items():
            expect(not close(cost, values.min()), f"the cost needs {hint}")
        expect(channel != int(costs.argmax()) or channel == best, "this is the dearest channel: take the smallest cost")
        expect(not close(cost, costs[best].sqrt()), "the cost is squared, E||...||^2: do not take the root")
        expect(channel == best, f"channel {channel} is not the cheapest: minimize ||W_j||^2 / [C^-1]_jj")
        expect(False, "the channel is right; its cost is ||W_j||^2 / [C^-1]_jj")
    passed("the cheapest channel and what its removal costs")
