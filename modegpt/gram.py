"""Gram matrices, summed up batch after batch: only the upper triangle is computed, in blocks."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
BLOCKS, NARROW = 8, 512  # up to eight block rows save up to 7/16 of the products; narrow ones are not worth cutting
ALIGNED = 64  # a GPU is several times slower on blocks that start anywhere


class GramSum:
    """The sum of the outer products of rows (..., tokens, n), kept in float64 as block rows of the upper triangle.

    Products within a batch are taken in `product_dtype`. Half-precision rows on a GPU go to the tensor cores as they
    are when that is float32: their products are exact and added up in float32. Elsewhere rows are upcast first, for
    squares overflow half precision.
    """

    def __init__(self, product_dtype: torch.dtype = torch.float32) -> None:
        self.product_dtype = product_dtype
        self.blocks: list[Tensor] = []
        self.shape: torch.Size = torch.Size()

    def add(self, rows: Tensor) -> None:
        """Add a batch of rows (..., tokens, n); the leading shape and n are the same in every batch."""
        exact = _exact(rows, self.product_dtype)
        n, first = rows.shape[-1], not self.blocks
        flat = rows.flatten(0, -3) if rows.ndim > 2 else rows
        flat = flat if exact else flat.to(self.product_dtype)
        for at, start in enumerate(range(0, n, _step(n))):
            left, right = flat[..., start : start + _step(n)].mT, flat[..., start:]
            if exact:
                product = (torch.mm if flat.ndim == 2 else torch.bmm)(left, right, out_dtype=torch.float32)
            else:
                product = left @ right
            if first:
                self.blocks.append(product.double())
            else:
                self.blocks[at].add_(product)
        self.shape = torch.Size((*rows.shape[:-2], n, n))

    def matrix(self) -> Tensor:
        """The whole symmetric sum, (..., n, n) float64. The block rows are gone then: it is called once."""
        return whole(self.blocks).view(self.shape)


def upper(matrix: Tensor) -> list[Tensor]:
    """The block rows of the upper triangle of a symmetric matrix (..., n, n), views: all that `whole` needs."""
    n = matrix.shape[-1]
    return [matrix[..., start : start + _step(n), start:] for start in range(0, n, _step(n))]


def whole(blocks: list[Tensor]) -> Tensor:
    """The symmetric matrix (..., n, n) of these block rows. The list is empty then: both would be much."""
    n = blocks[0].shape[-1]
    full = blocks[0].new_empty(*blocks[0].shape[:-2], n, n)
    for start in range(0, n, _step(n)):
        block, end = blocks.pop(0), min(start + _step(n), n)
        full[..., start:end, start:] = block
        full[..., end:, start:end] = block[..., end - start :].mT
    return full


def upper_size(n: int) -> int:
    """Entries of the block rows of the upper triangle of a matrix (n, n)."""
    step = _step(n)
    return sum(min(step, n - start) * (n - start) for start in range(0, n, step))


def _step(n: int) -> int:
    return n if n <= NARROW else -(-n // (BLOCKS * ALIGNED)) * ALIGNED


def product(left: Tensor, right: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """left^T right of rows (tokens, n) and (tokens, m): (n, m) in `dtype`, as `GramSum` takes its products.

    On the tensor cores `right` is rounded to the precision of `left`.
    """
    if _exact(left, dtype):
        return torch.mm(left.mT, right.to(left.dtype), out_dtype=torch.float32)
    return left.to(dtype).mT @ right.to(dtype)


def _exact(rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether the tensor cores take half-precision rows as they are and add up in float32."""
    return rows.is_cuda and rows.dtype in HALF and dtype == torch.float32


def gram(rows: Tensor, product_dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum of outer products, (..., tokens, n) -> (..., n, n) in `product_dtype`."""
    total = GramSum(product_dtype)
    total.add(rows)
    return total.matrix().to(product_dtype)
