"""Plain SVD against Eckart and Young."""

import pytest
import torch
from torch.testing import assert_close

from modegpt.errors import ModegptError
from modegpt.methods import svd
from modegpt.methods.low_rank import block_linears, ordered_factors

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(12, 12), (20, 9), (9, 20)]


def cut(factors, rank):
    left, right = factors
    return left[:, :rank] @ right[:rank]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_factors_are_the_textbook_projection(randn, shape):
    """On the leading eigenvectors of W^T W."""
    weight = randn(*shape)
    factors = ordered_factors(weight, weight)
    vectors = torch.linalg.eigh(weight.mT @ weight).eigenvectors.flip(1)
    for rank in (1, 4, 8):
        assert_close(cut(factors, rank), weight @ vectors[:, :rank] @ vectors[:, :rank].mT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_the_tail_of_the_singular_values_and_nothing_at_full_rank(randn, shape):
    weight = randn(*shape)
    factors, values = ordered_factors(weight, weight), torch.linalg.svdvals(weight)
    for rank in (1, 4, 8):
        assert_close((weight - cut(factors, rank)).norm(), values[rank:].norm())
    assert_close(cut(factors, min(shape)), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_other_matrix_of_that_rank_is_closer(randn, shape):
    weight = randn(*shape)
    left, right = ordered_factors(weight, weight)
    left, right = left[:, :4], right[:4]
    least = (weight - left @ right).norm()
    for step in (1e-3, 1e-1, 10.0):
        for _ in range(50):
            other = (left + step * randn(*left.shape)) @ (right + step * randn(*right.shape))
            assert (weight - other).norm() > least


def test_every_block_linear_is_factored_and_the_data_is_not_looked_at(dense):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    factors = svd.measure(dense, "no tokens")
    assert (factors.method, factors.tokens, factors.warnings) == ("svd", 0, [])
    names = {name for name, module in dense.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(factors) == names - {"lm_head"}
    for name, linear in block_linears(dense).items():
        assert {factor.dtype for factor in factors[name]} == {torch.float32}
        assert_close(cut(factors[name], 48), linear.weight.detach())
        assert_close((linear.weight - cut(factors[name], 9)).norm(), torch.linalg.svdvals(linear.weight)[9:].norm())
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_weights_that_hold_nan_are_refused_by_name(dense):
    name = list(block_linears(dense))[-1]
    dense.get_submodule(name).weight.data[0, 0] = torch.nan
    with pytest.raises(ModegptError, match=f"{name}: its weights hold NaN or inf"):
        svd.measure(dense, None)
