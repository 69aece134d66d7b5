"""Type III against the paper's own route: two SVDs through the d_h x d_h root of E[x x^T]."""

import pytest
import torch
from torch.testing import assert_close

from modegpt.decompose import query_key_residuals, query_key_svd, value_output_residuals, value_output_svd
from modegpt.errors import ModegptError

TOKENS, WIDTH, HEADS, GROUP, DIM = 100, 14, 2, 3, 6


@pytest.fixture
def x(randn):
    """Correlated inputs."""
    return randn(TOKENS, WIDTH) @ (torch.eye(WIDTH) + 0.3 * randn(WIDTH, WIDTH))


@pytest.fixture
def value(randn):
    return randn(HEADS, WIDTH, DIM)


@pytest.fixture(params=[1, GROUP], ids=["one head", "grouped"])
def output(randn, request):
    return randn(HEADS, request.param, DIM, WIDTH)


def stacked(output):
    """(kv_heads, group, d, width) -> (kv_heads, d, group * width), [W_O1 ... W_Og]."""
    return torch.cat(list(output.unbind(1)), dim=-1)


def paper_route(x, value, output, rank, gram, root):
    """Both matrices of one key/value head by the paper's Algorithm 3, output heads side by side."""
    half = root(gram(x))
    u, s, vt = torch.linalg.svd(half @ value, full_matrices=False)
    u2, s2, vt2 = torch.linalg.svd(s[:, None] * vt @ output, full_matrices=False)
    return torch.linalg.solve(half, u @ u2[:, :rank]), s2[:rank, None] * vt2[:rank]


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_product_equals_the_two_svds_of_the_paper(x, value, output, rank, gram, root):
    new_value, new_output, damping = value_output_svd(gram(x @ value), value, output, rank)
    assert new_value.shape == (HEADS, WIDTH, rank)
    assert new_output.shape == (HEADS, output.shape[1], rank, WIDTH)
    assert damping.tolist() == [1e-10] * HEADS
    for head in range(HEADS):
        wanted = torch.mm(*paper_route(x, value[head], stacked(output)[head], rank, gram, root))
        found = new_value[head] @ stacked(new_output)[head]
        assert (found - wanted).norm() < 1e-8 * wanted.norm()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_the_least_that_eckart_and_young_allow(x, value, output, rank, gram):
    new_value, new_output, _ = value_output_svd(gram(x @ value), value, output, rank)
    for head in range(HEADS):
        dense = x @ value[head] @ stacked(output)[head]
        error = (dense - x @ new_value[head] @ stacked(new_output)[head]).norm()
        assert_close(error, torch.linalg.svdvals(dense)[rank:].norm(), rtol=1e-8, atol=0)


def test_no_change_of_either_matrix_does_better(x, value, output, gram, randn):
    new_value, new_output, _ = value_output_svd(gram(x @ value), value, output, 3)
    dense = x @ value @ stacked(output)

    def error(p, q):
        return (dense - x @ p @ stacked(q)).norm().item()

    for step in (1e-2, 1.0):
        for _ in range(20):
            p, q = step * randn(*new_value.shape), step * randn(*new_output.shape)
            for sign in (1, -1):
                assert error(new_value, new_output) < error(new_value + sign * p, new_output + sign * q)


@pytest.mark.parametrize("group", [1, GROUP])
def test_each_query_head_of_the_group_gets_its_own_output(x, value, gram, randn, group):
    """Of rank d - 1 so that the error is small, and the heads so different that none can stand for another."""
    output = randn(HEADS, group, DIM, WIDTH)
    new_value, new_output, _ = value_output_svd(gram(x @ value), value, output, DIM - 1)
    for head in range(HEADS):
        for g in range(group):
            dense = x @ value[head] @ output[head, g]
            assert (x @ new_value[head] @ new_output[head, g] - dense).norm() < 0.5 * dense.norm()


def test_keeping_every_dim_returns_the_weights_unchanged(x, value, output, gram):
    new_value, new_output, damping = value_output_svd(gram(x @ value), value, output, DIM)
    assert torch.equal(new_value, value)
    assert torch.equal(new_output, output)
    assert damping.tolist() == [0] * HEADS


def test_rank_deficient_values_lose_nothing_at_their_rank(x, value, output, gram, randn):
    deficient = value[..., :3] @ randn(HEADS, 3, DIM)
    for rank in (3, 5):
        new_value, new_output, _ = value_output_svd(gram(x @ deficient), deficient, output, rank)
        assert_close(new_value @ stacked(new_output), deficient @ stacked(output), rtol=1e-7, atol=1e-7)


def test_fewer_tokens_than_dims_lose_nothing_on_those_tokens(x, value, output, gram):
    few = x[:3]
    for rank in (3, 5):
        new_value, new_output, _ = value_output_svd(gram(few @ value), value, output, rank)
        assert_close(few @ new_value @ stacked(new_output), few @ value @ stacked(output), rtol=1e-7, atol=1e-7)


def test_values_that_are_always_zero_give_finite_weights(value, output):
    zero = torch.zeros(HEADS, DIM, DIM, dtype=torch.float64)
    for weights in value_output_svd(zero, value, output, 3):
        assert torch.isfinite(weights).all()


def test_outputs_narrower_than_the_head_work(x, value, gram, randn):
    output = randn(HEADS, 1, DIM, 4)
    new_value, new_output, _ = value_output_svd(gram(x @ value), value, output, 5)
    assert_close(new_value @ stacked(new_output), value @ stacked(output))


def test_heads_together_equal_heads_alone(x, value, output, gram):
    matrices = gram(x @ value)
    together = value_output_svd(matrices, value, output, 3)
    for head in range(HEADS):
        alone = value_output_svd(*(t[head : head + 1] for t in (matrices, value, output)), 3)
        for many, one in zip(together, alone, strict=True):
            assert_close(many[head], one[0])


def test_weights_of_another_dtype_come_back_in_that_of_the_gram_matrix(x, value, output, gram):
    for rank in (3, DIM):
        results = value_output_svd(gram(x @ value), value.float(), output.float(), rank)
        assert {result.dtype for result in results} == {torch.float64}


def test_nan_is_refused(x, value, output, gram):
    x[0, 0] = torch.nan
    with pytest.raises(ModegptError, match="NaN or inf"):
        value_output_svd(gram(x @ value), value, output, 3)


def test_the_residuals_are_the_errors_of_every_rank(x, value, output, gram):
    found = value_output_residuals(gram(x @ value), output)
    dense = [x @ value[h] @ stacked(output)[h] for h in range(HEADS)]
    tails = [sum(torch.linalg.svdvals(d)[rank:].square().sum() / TOKENS for d in dense) for rank in range(DIM + 1)]
    assert_close(found, torch.stack([*tails[:-1], found.new_zeros(())]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_query_key_by_svd_is_the_optimum_on_all_logits(randn, rank, gram):
    """Eckart and Young on the logits themselves, q k^T over all pairs of tokens."""
    query, key = (randn(HEADS, TOKENS, DIM) @ (torch.eye(DIM) + 0.4 * randn(DIM, DIM)) for _ in "qk")
    grams = gram(query)[:, None], gram(key)
    maps = query_key_svd(*grams, rank)
    assert maps[0].shape == maps[1].shape == (HEADS, DIM, rank)
    residuals = query_key_residuals(*grams)
    for head in range(HEADS):
        logits = query[head] @ key[head].mT
        error = (logits - query[head] @ maps[0][head] @ (key[head] @ maps[1][head]).mT).norm()
        assert_close(error, torch.linalg.svdvals(logits)[rank:DIM].norm(), rtol=1e-7, atol=1e-8)
    errors = [torch.linalg.svdvals(q @ k.mT)[rank:DIM].square().sum() for q, k in zip(query, key, strict=True)]
    assert_close(residuals[rank] * TOKENS**2, sum(errors), rtol=1e-7, atol=1e-8)
