"""Query-key through one projection that all heads share. Ours, not the paper's.

Rotary embeddings stand between W_Q and W_K, so no two of their columns can be mixed behind the projection. In front of
the rotation they can: [q k] = x W with W = [W_Q W_K], and a factorisation W = P B of rank r gives every head all of its
dims from the same r numbers. That is r (width + rows) parameters instead of width * rows, where a dropped pair takes a
part of every token's angle with it. The price is one more product, and keys in the cache stay as wide as they were.
"""

import torch
from torch import Tensor

from modegpt.decompose.linalg import damped_cholesky

LONGEST = 100.0  # column of P: where few tokens leave directions unseen, R^-1 is huge, and float16 ends at 65504


def pair_weights(query: Tensor, key: Tensor) -> Tensor:
    """What an error of each query and key dim does to the scores q k^T, to first order, (rows,).

    The error of a rotated pair of queries is multiplied by that pair of the keys, and the other way round. No rotation
    changes the energy of a pair, so the weight of a query dim is the norm of its key pair, and that of a key dim the
    norm of its pair over all queries of the group.

    Args:
        query: Gram matrices of the rotated queries, (kv_heads, group, d, d).
        key: Gram matrices of the rotated keys, (kv_heads, d, d).

    Returns:
        Weights in the order of the rows of W_Q^T and then of W_K^T: heads * d + kv_heads * d of them.
    """
    query_power, key_power = (gram.diagonal(dim1=-2, dim2=-1) for gram in (query, key))

    def of_pair(power: Tensor) -> Tensor:
        half = power.shape[-1] // 2
        return (power[..., :half] + power[..., half:]).repeat(*(1,) * (power.ndim - 1), 2)

    for_query = of_pair(key_power)[:, None].expand_as(query_power)
    for_key = of_pair(query_power).sum(1)
    return torch.cat([for_query.flatten(), for_key.flatten()]).sqrt()


def shared_projection(gram: Tensor, weight: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` factorisation of the stacked query and key projections.

    Minimises E||(x W - x P B) diag(w)||^2 over all P and B. With R^T R = C = E[x^T x] that is the truncated SVD of
    R W diag(w) (Eckart and Young): with its leading left singular vectors U, P = R^-1 U and B = U^T R W. The rank-r
    features x P are orthonormal over the calibration tokens, whatever the scale of x. Only where a column of P would be
    longer than `LONGEST`, its feature is scaled down, and its row of B up.

    Args:
        gram: C, of what enters the projections, (width, width), float64 advised.
        weight: W = [W_Q W_K] as (width, rows).
        weights: w >= 0, (rows,), see `pair_weights`.
        rank: 1 <= rank <= width.

    Returns:
        P (width, rank) and B (rank, rows), in the dtype of `gram`.
    """
    root, image, spectrum = _spectrum(gram, weight, weights)
    basis = torch.linalg.eigh(spectrum).eigenvectors.flip(-1)[:, :rank]
    project = torch.linalg.solve_triangular(root, basis, upper=True)
    scale = (project.norm(dim=0) / LONGEST).clamp(min=1)
    return project / scale, scale[:, None] * (basis.mT @ image)


def shared_residuals(gram: Tensor, weight: Tensor, weights: Tensor) -> Tensor:
    """What `shared_projection` loses at every rank, (width + 1,): the tails of the squared spectrum.

    Args:
        gram, weight, weights: as in `shared_projection`.
    """
    energy = torch.linalg.eigvalsh(_spectrum(gram, weight, weights)[2]).clamp(min=0)  # ascending
    return torch.cat([energy.cumsum(0).flip(0), energy.new_zeros(1)])


def _spectrum(gram: Tensor, weight: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R, R W, and (R W diag(w)) (R W diag(w))^T, whose eigenvectors are the singular vectors, (width, width)."""
    root = damped_cholesky(gram)[0].mT
    image = root @ weight.to(gram)
    weighted = image * weights.to(gram)
    return root, image, weighted @ weighted.mT
