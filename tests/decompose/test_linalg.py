"""The damped Cholesky factorisation that every solve rests on."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from modegpt.decompose import damped_cholesky
from modegpt.decompose.linalg import inverse_diagonal
from modegpt.errors import ModegptError


@pytest.fixture
def with_eigenvalues(randn):
    """A symmetric matrix of the given eigenvalues."""

    def build(*values: float) -> Tensor:
        vectors = torch.linalg.qr(randn(len(values), len(values))).Q
        return vectors * torch.tensor(values, dtype=torch.float64) @ vectors.T

    return build


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_factor_reproduces_the_damped_matrix(randn, gram, batch):
    matrix = gram(randn(*batch, 40, 6))
    factor, damping = damped_cholesky(matrix, start=1e-3)
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    assert damping.shape == batch
    assert_close(damping, torch.full(batch, 1e-3, dtype=torch.float64))
    assert_close(factor @ factor.mT, matrix + (damping * mean)[..., None, None] * torch.eye(6), rtol=1e-12, atol=1e-12)
    assert_close(factor, factor.tril(), rtol=0, atol=0)


def test_a_regular_matrix_is_damped_by_no_more_than_1e_10(randn, gram):
    matrix = gram(randn(40, 6))
    factor, damping = damped_cholesky(matrix)
    assert damping.item() == 1e-10
    assert_close(factor, torch.linalg.cholesky(matrix), rtol=1e-8, atol=1e-8)


def test_every_matrix_of_a_batch_climbs_its_own_ladder(with_eigenvalues):
    negative = [0.5, -3e-7, -3e-5, -3e-3]  # the last one needs the highest rung
    batch = torch.stack([with_eigenvalues(1, 1, 2, value) for value in negative])
    factor, damping = damped_cholesky(batch)
    assert_close(damping, torch.tensor([1e-10, 1e-6, 1e-4, 1e-2], dtype=torch.float64))
    for matrix, alone in zip(batch, factor, strict=True):
        assert_close(damped_cholesky(matrix)[0], alone)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_damping_is_relative_to_the_mean_of_the_diagonal(with_eigenvalues, scale):
    matrix = with_eigenvalues(1, 1, 2, -3e-5)
    factor, damping = damped_cholesky(matrix)
    scaled, same = damped_cholesky(scale * matrix)
    assert same == damping
    assert_close(scaled, scale**0.5 * factor, rtol=1e-6, atol=0)


def test_fewer_tokens_than_dims_in_float32_need_more_damping(randn, gram):
    factor, damping = damped_cholesky(gram(randn(5, 20).float()))
    assert torch.isfinite(factor).all()
    assert 1e-9 < damping <= 1e-2


def test_an_all_zero_matrix_has_a_factor():
    factor, damping = damped_cholesky(torch.zeros(4, 4, dtype=torch.float64))
    assert_close(factor @ factor.T, damping * torch.eye(4, dtype=torch.float64))
    assert damping > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_are_refused(randn, gram, bad):
    batch = gram(randn(2, 40, 4))
    batch[1, 2, 3] = bad
    with pytest.raises(ModegptError, match="NaN or inf"):
        damped_cholesky(batch)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("soon", [2], indirect=True)
@pytest.mark.parametrize("start", [0.0, -1.0, torch.nan, torch.inf])
def test_damping_that_is_not_positive_is_refused(with_eigenvalues, start):
    with pytest.raises(ModegptError, match="must be a positive number"):
        damped_cholesky(with_eigenvalues(1, 1, 2, -3e-5), start)


def test_an_indefinite_matrix_is_refused(with_eigenvalues):
    with pytest.raises(ModegptError, match="4 dims is not positive definite"):
        damped_cholesky(torch.stack([with_eigenvalues(1, 1, 1, 1), with_eigenvalues(1, 1, 2, -0.1)]))


@pytest.mark.parametrize("n", [1, 7, 512, 513, 1100])
def test_inverse_diagonal_is_that_of_the_whole_inverse(n):
    rows = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = rows.mT @ rows / n + 0.1 * torch.eye(n, dtype=torch.float64)
    found = inverse_diagonal(torch.linalg.cholesky(gram))
    torch.testing.assert_close(found, torch.linalg.inv(gram).diagonal(), rtol=1e-9, atol=0)
