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
    # left singular vectors of a wide matrix, d x d: batched eigenvectors, where batched SVDs take a GPU minutes.
    # Directions below the root of the rounding error blur into one another; none of them would be kept, or missed.
    basis = torch.linalg.eigh(weighted @ weighted.mT).eigenvectors.flip(-1)[..., :rank]
    new_value = value @ torch.linalg.solve_triangular(root, basis, upper=True)
    new_output = (basis.mT @ weighted).reshape(heads, rank, group, width).transpose(1, 2)
    return new_value, new_output, damping
