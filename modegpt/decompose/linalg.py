"""The one factorisation that every solve here rests on."""

import math

import torch
from torch import Tensor

from modegpt.errors import ModegptError

DAMPING_START, DAMPING_STEP, DAMPING_LIMIT = 1e-10, 10.0, 1e-2
BLOCKS, NARROW = 8, 512


def damped_cholesky(gram: Tensor, start: float = DAMPING_START) -> tuple[Tensor, Tensor]:
    """Cholesky factor of a Gram matrix, damped just enough to exist.

    Tries C + damping * mean(diag C) * I with damping = `start`, ten times more wherever that fails, and so
    on up to 1e-2. A Gram matrix of fewer tokens than dims is singular and needs this.

    Args:
        gram: symmetric positive semi-definite, (..., n, n), float32 or float64.
        start: first damping tried, relative to the mean of the diagonal.

    Returns:
        L: lower triangular (..., n, n) with L L^T = C + damping * mean(diag C) * I.
        damping: the relative damping that each matrix needed, (...).

    Raises:
        ModegptError: `start` is not positive, the matrix holds NaN or inf, or is far from positive semi-definite.
    """
    if not 0 < start < math.inf:
        raise ModegptError(f"the damping of a Gram matrix must be a positive number, got {start:g}")
    if not all_finite(gram):
        raise ModegptError("a Gram matrix holds NaN or inf")
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))  # an all-zero matrix is damped by an absolute amount
    damping = torch.full_like(mean, start)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    undamped = diagonal.clone()
    while True:
        try:  # in place and back again: a Gram matrix may be gigabytes, and a copy as much
            diagonal.add_((damping * mean)[..., None])
            factor, failed = torch.linalg.cholesky_ex(gram)
        finally:
            diagonal.copy_(undamped)
        if not failed.any():
            return factor, damping
        damping = torch.where(failed > 0, damping * DAMPING_STEP, damping)
        if damping.max() > (limit := max(start, DAMPING_LIMIT)):
            raise ModegptError(
                f"a Gram matrix of {gram.shape[-1]} dims is not positive definite, even damped by {limit:g}"
            )


def all_finite(matrix: Tensor) -> bool:
    """Whether no entry is NaN or inf, without the copies that torch.isfinite makes of a matrix of gigabytes."""
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(matrix))


def inverse_diagonal(factor: Tensor) -> Tensor:
    """diag((L L^T)^-1) from a Cholesky factor L (n, n): the squared norms of the columns of L^-1, (n,).

    L^-1 is lower triangular. A block of its columns at a time is made, from its diagonal block downwards: a third of
    the work of the whole inverse, which is never in memory at once. The diagonal blocks are inverted first, since
    products are faster than triangular solves.
    """
    n = len(factor)
    step = n if n <= NARROW else -(-n // BLOCKS)
    starts = range(0, n, step)
    diagonal = [factor[at : at + step, at : at + step] for at in starts]
    inverses = [
        torch.linalg.solve_triangular(d, torch.eye(len(d), out=d.new_empty(d.shape)), upper=False) for d in diagonal
    ]
    found = []
    for first, start in enumerate(starts):
        columns = factor.new_empty(n - start, len(diagonal[first]))
        columns[:step] = inverses[first]
        for row, inverse in zip(starts[first + 1 :], inverses[first + 1 :], strict=True):
            above = factor[row : row + step, start:row] @ columns[: row - start]
            torch.mm(inverse, above, out=columns[row - start : row + step - start]).neg_()
        found.append(columns.square_().sum(0))
    return torch.cat(found)
