"""Query-key through one projection, against the truncated SVD of the weighted outputs."""

import pytest
import torch
from torch.testing import assert_close

from modegpt.decompose import pair_weights, shared_projection, shared_residuals

TOKENS, WIDTH, HEADS, GROUP, DIM = 200, 14, 2, 3, 6
ROWS = HEADS * (GROUP + 1) * DIM


@pytest.fixture
def x(randn):
    """Correlated inputs."""
    return randn(TOKENS, WIDTH) @ (torch.eye(WIDTH) + 0.3 * randn(WIDTH, WIDTH))


@pytest.fixture
def weight(randn):
    return randn(WIDTH, ROWS)


@pytest.fixture
def weights(randn):
    return randn(ROWS).abs() + 0.1


@pytest.mark.parametrize("rank", [1, 5, 13])
def test_the_error_is_the_least_that_eckart_and_young_allow(x, weight, weights, rank, gram):
    project, both = shared_projection(gram(x), weight, weights, rank)
    assert project.shape == (WIDTH, rank) and both.shape == (rank, ROWS)
    dense = x @ weight
    error = ((dense - x @ project @ both) * weights).norm()
    assert_close(error, torch.linalg.svdvals(dense * weights)[rank:].norm(), rtol=1e-7, atol=0)
    assert_close(shared_residuals(gram(x), weight, weights)[rank], error**2 / TOKENS, rtol=1e-7, atol=0)


def test_no_change_of_either_map_does_better(x, weight, weights, gram, randn):
    project, both = shared_projection(gram(x), weight, weights, 5)

    def error(p, b):
        return ((x @ weight - x @ p @ b) * weights).norm().item()

    for step in (1e-2, 1.0):
        assert error(project + step * randn(WIDTH, 5), both) > error(project, both)
        assert error(project, both + step * randn(5, ROWS)) > error(project, both)
    even, other = shared_projection(gram(x), weight, torch.ones(ROWS), 5)
    assert error(even, other) > 1.01 * error(project, both)


def test_of_full_rank_it_is_the_dense_map(x, weight, weights, gram):
    project, both = shared_projection(gram(x), weight, weights, WIDTH)
    assert_close(project @ both, weight, rtol=1e-7, atol=1e-7)
    assert shared_residuals(gram(x), weight, weights)[WIDTH] == 0


def test_the_features_are_orthonormal_over_the_tokens(x, weight, weights, gram):
    project, _ = shared_projection(gram(x), weight, weights, 5)
    assert_close(gram(x @ project), torch.eye(5).double(), rtol=0, atol=1e-8)


def test_few_tokens_make_no_number_that_float16_lacks(x, weight, weights, gram):
    """Four tokens span four of fourteen directions, and R^-1 is huge in the others; zeros span none."""
    seen = x[:4]
    for inputs in (seen, 0 * seen):
        project, both = shared_projection(gram(inputs), weight, weights, 8)
        assert max(project.abs().max(), both.abs().max()) <= 100
        assert_close(inputs @ project @ both, inputs @ weight, rtol=1e-7, atol=1e-7)


def test_a_dim_that_is_never_looked_at_may_be_wrong(x, weight, weights, gram):
    weights[: ROWS // 2] = 0
    project, both = shared_projection(gram(x), weight, weights, 8)
    alone = shared_projection(gram(x), weight[:, ROWS // 2 :], weights[ROWS // 2 :], 8)
    assert_close((project @ both)[:, ROWS // 2 :], alone[0] @ alone[1], rtol=1e-6, atol=1e-8)


def test_the_weights_say_what_an_error_does_to_the_scores(randn, gram):
    """A small error of one dim of queries or keys: the mean square change of q k^T over independent tokens."""
    query, key = randn(HEADS, GROUP, TOKENS, DIM), 2 * randn(HEADS, TOKENS, DIM)
    found = pair_weights(gram(query), gram(key))
    half, norms = DIM // 2, {"query": found[: HEADS * GROUP * DIM], "key": found[HEADS * GROUP * DIM :]}
    for head in range(HEADS):
        for dim in range(DIM):
            pair = [dim % half, dim % half + half]
            of_key = key[head][:, pair].square().sum(-1).mean().sqrt()
            of_queries = query[head][:, :, pair].square().sum(-1).mean(-1).sum().sqrt()
            assert_close(norms["key"].view(HEADS, DIM)[head, dim], of_queries)
            for each in range(GROUP):
                assert_close(norms["query"].view(HEADS, GROUP, DIM)[head, each, dim], of_key)
