"""Seeded random data, and the textbook routes that the production code avoids."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Normal float64 numbers, the same in every run."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def gram() -> Callable[[Tensor], Tensor]:
    """(..., tokens, n) -> (..., n, n), the mean of the rows' outer products."""
    return lambda rows: rows.mT @ rows / rows.shape[-2]


@pytest.fixture
def root() -> Callable[[Tensor], Tensor]:
    """The symmetric square root, from an eigendecomposition."""

    def symmetric_root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=0).sqrt()[..., None, :] @ vectors.mT

    return symmetric_root
