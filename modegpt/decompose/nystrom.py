"""Type I, the MLP: Nystrom approximation (MoDeGPT, Theorem 1 and Algorithm 1; arXiv 2408.09632).

f(X) = a(X) W_down with a(X) elementwise nonlinear in X W_up (and X W_gate), so the columns of W_up can only be
selected. W_down is free and is solved for again.
"""

import math

import torch
from torch import Tensor

from modegpt.decompose.linalg import DAMPING_START, damped_cholesky, inverse_diagonal
from modegpt.errors import ModegptError


def leverage_scores(gram: Tensor, ridge: float = 1.0) -> Tensor:
    """Ridge leverage scores s = diag(C (C + lambda I)^-1), lambda = ridge * mean(diag C).

    Computed as 1 - lambda diag((C + lambda I)^-1).

    Args:
        gram: C = E[a a^T] of the MLP's intermediate activations, (n, n), float64 advised.
        ridge: lambda relative to the mean of the diagonal, > 0.

    Returns:
        Scores in [0, 1], (n,); their sum is the effective dimension of the activations at lambda.

    Raises:
        ModegptError: `ridge` is not a positive number.
    """
    if not 0 < ridge < math.inf:
        raise ModegptError(f"the ridge of the leverage scores must be a positive number, got {ridge:g}")
    if not gram.any():
        return torch.zeros_like(gram.diagonal())  # nothing ever fires: every channel is equally useless
    factor, damping = damped_cholesky(gram, start=ridge)
    return 1 - damping * gram.diagonal().mean() * inverse_diagonal(factor)


def nystrom(
    gram: Tensor, down: Tensor, rank: int, ridge: float = 1.0, damping: float = DAMPING_START
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep `rank` MLP channels and solve W_down again for what they can still express.

    Minimises E||a W_down - a_J W'||^2 over W' for the channels J of largest leverage:
    W' = C_JJ^-1 C_J: W_down, written as W_down[J] plus the regression of the dropped channels on the kept ones,
    so that damping pulls towards plain selection and keeping everything changes nothing.

    Args:
        gram: C = E[a a^T], (n, n).
        down: W_down, (n, width).
        rank: channels to keep, 1 <= rank <= n.
        ridge: of the leverage scores, see `leverage_scores`.
        damping: first damping of the solve, relative to the mean of the diagonal, see `damped_cholesky`. A regression
            on few tokens needs more than it takes to be solvable.

    Returns:
        keep: kept channels, ascending, (rank,) int64. W_up, W_gate and their biases keep these columns.
        down: W', (rank, width), in the dtype of `gram`.
        damping: relative damping the solve needed, 0-dim.
    """
    if rank == len(down):  # the identity needs no solve
        return torch.arange(rank, device=gram.device), down.to(gram), gram.new_zeros(())
    order = leverage_scores(gram, ridge).argsort(descending=True, stable=True)
    keep, drop = order[:rank].sort().values, order[rank:].sort().values
    # gram[J] of all columns, or W_down in float64, would be the largest thing in memory; these blocks are not
    dropped = gram[keep[:, None], drop] @ down[drop].to(gram)
    factor, damped = damped_cholesky(gram[keep[:, None], keep], damping)
    correction = torch.cholesky_solve(dropped, factor)
    return keep, down[keep].to(gram) + correction, damped


def nystrom_residuals(gram: Tensor, down: Tensor, ridge: float = 1.0) -> Tensor:
    """What `nystrom` loses at every rank, E||a W_down - a_J W'||^2, (n + 1,): entry k for the k best channels.

    With the channels in the order of their leverage and C = L L^T, dropping all but the first k leaves the lower right
    block of L (a Schur complement), so the loss is the sum of the squared rows of L^T W_down from row k on: one
    factorization serves all ranks.

    Args:
        gram, down, ridge: as in `nystrom`.
    """
    order = leverage_scores(gram, ridge).argsort(descending=True, stable=True)
    factor, _ = damped_cholesky(gram[order[:, None], order])
    rows = (factor.mT @ down[order].to(gram)).square().sum(1)
    return torch.cat([rows.flip(0).cumsum(0).flip(0), rows.new_zeros(1)])
