"""Type III, value-output: SVD (MoDeGPT, Theorem 3 and Algorithm 3; arXiv 2408.09632).

f(X) = X W_V W_O per head: attention only mixes rows, so the two matrices meet with nothing in between. For X as it
is before the mixing, the optimum over all low-rank pairs is an SVD.
"""

import torch
from torch import Tensor

from modegpt.decompose.linalg import damped_cholesky


def value_output_svd(gram: Tensor, value: Tensor, output: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best rank-`rank` value-output pair of every key/value head, jointly for its group of query heads.

    Minimises sum_g E||x W_V W_Og - x P Q_g||^2. The paper takes two SVDs that pass through C^1/2 with C = E[x x^T]
    of the model's full width. The optimal x P lies in the span of the values v = x W_V, so their d x d Gram
    matrix G = E[v v^T] says it all: with R^T R = G and U the leading left singular vectors of R [W_O1 ... W_Og],

        W_V <- W_V R^-1 U,    W_O <- U^T R W_O.

    The product is the paper's; no root of a matrix wider than one head is ever formed.

    Args:
        gram: G of each key/value head, (kv_heads, d, d), float64 advised.
        value: W_V, (kv_heads, width, d).
        output: W_O of the query heads each value serves, (kv_heads, group, d, width).
        rank: dims to keep, 1 <= rank <= d. rank = d returns the weights as they are.

    Returns:
        value (kv_heads, width, rank), output (kv_heads, group, rank, width), in the dtype of `gram`, and the
        relative damping each head's Cholesky factor needed, (kv_heads,).
    """
    value, output = value.to(gram), output.to(gram)
    heads, group, dim, width = output.shape
    if rank == dim:
        return value, output, torch.zeros(heads, dtype=gram.dtype, device=gram.device)
    lower, damping = damped_cholesky(gram)
    root = lower.mT  # upper triangular, R^T R = G
    weighted = root @ output.transpose(1, 2).reshape(heads, dim, group * width)
    # Directions below the root of the rounding error blur into one another; none of them would be kept, or missed.
    basis = _eigenvectors(weighted @ weighted.mT)[..., :rank]
    new_value = value @ torch.linalg.solve_triangular(root, basis, upper=True)
    new_output = (basis.mT @ weighted).reshape(heads, rank, group, width).transpose(1, 2)
    return new_value, new_output, damping


def _eigenvectors(matrices: Tensor) -> Tensor:
    """Of positive semi-definite matrices (heads, d, d), by falling eigenvalue: as the columns of (heads, d, d)."""
    if not matrices.is_cuda:
        return torch.linalg.eigh(matrices).eigenvectors.flip(-1)
    # many small matrices at once, where cuSOLVER's eigenvectors take them one after the other
    return torch.linalg.svd(damped_cholesky(matrices)[0].mT, driver="gesvda").Vh.mT


def value_output_residuals(gram: Tensor, output: Tensor) -> Tensor:
    """What `value_output_svd` loses at every rank, summed over the heads, (d + 1,): the tails of the squared spectrum.

    Args:
        gram, output: as in `value_output_svd`.
    """
    heads, group, dim, width = output.shape
    root = damped_cholesky(gram)[0].mT
    weighted = root @ output.to(gram).transpose(1, 2).reshape(heads, dim, group * width)
    energy = torch.linalg.eigvalsh(weighted @ weighted.mT).clamp(min=0).sum(0)  # ascending
    return torch.cat([energy.cumsum(0).flip(0), energy.new_zeros(1)])


def query_key_svd(query: Tensor, key: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` query-key pair of every head where nothing rotates between the two (OPT).

    q k^T does not change under W_Q M and W_K M^-T. With R_Q^T R_Q = C_Q and R_K^T R_K = C_K, and U S V^T the SVD of
    R_Q R_K^T, the maps M_Q = R_Q^-1 U_k S_k^1/2 and M_K = R_K^-1 V_k S_k^1/2 minimise E||q k^T - q M_Q M_K^T k^T||^2
    over independent queries and keys (Eckart and Young). The paper selects dims here too; this is ours.

    Args:
        query: C_Q of each head with its bias, (heads, 1, d, d), float64 advised.
        key: C_K, (heads, d, d).
        rank: dims to keep, 1 <= rank <= d.

    Returns:
        M_Q and M_K, (heads, d, rank): W_Q and b_Q are multiplied by the first, W_K and b_K by the second.
    """
    if rank == query.shape[-1]:
        same = torch.eye(rank, dtype=key.dtype, device=key.device).expand_as(key)
        return same, same
    roots = [damped_cholesky(gram)[0].mT for gram in (query[:, 0], key)]
    left, values, right = torch.linalg.svd(roots[0] @ roots[1].mT)
    scale = values[:, None, :rank].sqrt()
    sides = (left[..., :rank] * scale, right.mT[..., :rank] * scale)
    maps = [torch.linalg.solve_triangular(root, side, upper=True) for root, side in zip(roots, sides, strict=True)]
    return maps[0], maps[1]


def query_key_residuals(query: Tensor, key: Tensor) -> Tensor:
    """What `query_key_svd` loses at every rank, summed over the heads, (d + 1,): the tails of the squared spectrum.

    Args:
        query, key: as in `query_key_svd`.
    """
    roots = [damped_cholesky(gram)[0].mT for gram in (query[:, 0], key)]
    energy = torch.linalg.svdvals(roots[0] @ roots[1].mT).square().sum(0)
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
