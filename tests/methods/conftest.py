"""A tiny model of each family, and seeded numbers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Normal float64 numbers, the same in every run."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(params=["llama", "opt"])
def dense(request, tiny_llama, tiny_opt):
    return {"llama": tiny_llama, "opt": tiny_opt}[request.param]()
