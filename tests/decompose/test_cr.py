"""Type II against the textbook: norms of the columns of matrix square roots, and the errors on data."""

from itertools import combinations
from math import pi

import pytest
import torch
from torch.testing import assert_close

from modegpt.decompose import PAIR_SCORES, cr_select
from modegpt.errors import ModegptError

TOKENS, HEADS, GROUP, DIM = 60, 2, 3, 8
HALF = DIM // 2


@pytest.fixture
def queries(randn):
    """(kv_heads, group, tokens, d): correlated dims of very unequal power."""
    return randn(HEADS, GROUP, TOKENS, DIM) @ randn(HEADS, GROUP, DIM, DIM) * randn(HEADS, GROUP, 1, DIM).exp()


@pytest.fixture
def keys(randn):
    return randn(HEADS, TOKENS, DIM) @ randn(HEADS, DIM, DIM)


def orders(query, key, **options):
    """The dims of each head from best to worst, from the selections at every rank (with rotary: lower dims)."""
    step = 1 if options.get("rotary") is False else 2
    before, order = [set() for _ in key], [[] for _ in key]
    for rank in range(step, DIM + 1, step):
        for head, kept in enumerate(cr_select(query, key, rank, **options)[:, : rank // step].tolist()):
            assert kept == sorted(set(kept))
            assert before[head] < set(kept)
            order[head] += set(kept) - before[head]
            before[head] = set(kept)
    return order


def root_norms(root, matrix):
    """||C^1/2 [:, i]||."""
    return root(matrix).norm(dim=-2)


def test_scores_are_column_norms_of_the_square_roots_summed_over_the_group(queries, keys, gram, root):
    query, key = gram(queries), gram(keys)
    scores = (root_norms(root, query) * root_norms(root, key)[:, None]).sum(1)
    assert orders(query, key, rotary=False) == scores.argsort(descending=True).tolist()


def test_the_joint_score_of_a_pair_takes_both_norms_over_the_pair(queries, keys, gram, root):
    query, key = gram(queries), gram(keys)
    pairs = [root_norms(root, matrix).unflatten(-1, (2, HALF)).norm(dim=-2) for matrix in (query, key)]
    scores = (pairs[0] * pairs[1][:, None]).sum(1)
    assert orders(query, key) == orders(query, key, pair_score="joint") == scores.argsort(descending=True).tolist()


def test_the_sum_score_of_a_pair_adds_the_scores_of_its_dims(queries, keys, gram, root):
    query, key = gram(queries), gram(keys)
    scores = (root_norms(root, query) * root_norms(root, key)[:, None]).unflatten(-1, (2, HALF)).sum((1, 2))
    assert orders(query, key, pair_score="sum") == scores.argsort(descending=True).tolist()


def test_the_two_pair_scores_differ_where_queries_and_keys_use_different_halves_of_a_pair():
    query, key = torch.diag_embed(torch.tensor([[[1.0, 0.4, 0.0, 0.4]], [[0.0, 0.4, 1.0, 0.4]]])).split(1)
    assert cr_select(query, key[0], 2, pair_score="joint").tolist() == [[0, 2]]
    assert cr_select(query, key[0], 2, pair_score="sum").tolist() == [[1, 3]]


@pytest.mark.parametrize("pair_score", PAIR_SCORES)
@pytest.mark.parametrize("rank", range(2, DIM + 1, 2))
def test_rotary_partners_stay_together_in_the_layout_of_rotate_half(queries, keys, gram, rank, pair_score):
    kept = cr_select(gram(queries), gram(keys), rank, pair_score=pair_score)
    assert kept.shape == (HEADS, rank) and kept.dtype == torch.int64
    assert torch.equal(kept[:, rank // 2 :], kept[:, : rank // 2] + HALF)
    assert (kept[:, : rank // 2] < HALF).all()


@pytest.mark.parametrize("rotary", [True, False])
def test_keeping_everything_keeps_the_order(queries, keys, gram, rotary):
    assert cr_select(gram(queries), gram(keys), DIM, rotary).tolist() == [list(range(DIM))] * HEADS


def test_the_joint_score_does_not_change_when_every_pair_is_rotated(queries, keys, gram, randn):
    def rotate(states, angle):
        lower, upper = states[..., :HALF], states[..., HALF:]
        return torch.cat([lower * angle.cos() - upper * angle.sin(), upper * angle.cos() + lower * angle.sin()], -1)

    original = orders(gram(queries), gram(keys))
    for _ in range(10):
        turned = rotate(queries, 2 * pi * randn(HEADS, GROUP, 1, HALF)), rotate(keys, 2 * pi * randn(HEADS, 1, HALF))
        assert orders(gram(turned[0]), gram(turned[1])) == original


def test_the_error_on_data_is_the_sum_of_the_gram_products_over_the_dropped_dims(queries, keys, gram):
    query, key = gram(queries), gram(keys)
    for head, kept in enumerate(cr_select(query, key, 4)):
        drop = [dim for dim in range(DIM) if dim not in kept]
        products = (query[head].sum(0) * key[head])[drop][:, drop]
        logits = queries[head] @ keys[head].T
        error = (logits - queries[head][..., kept] @ keys[head][:, kept].T).square().sum() / TOKENS**2
        assert_close(error, products.sum())


@pytest.mark.parametrize("rotary", [True, False])
def test_independent_dims_are_chosen_as_well_as_by_brute_force(randn, gram, rotary):
    """One head, no correlations (and rotary pairs of equal power): the score ranks the exact errors."""
    power = randn(2, HALF, 1).exp().expand(-1, -1, 2).mT.reshape(2, DIM) if rotary else randn(2, DIM).exp()
    # orthogonal columns
    query, key = (torch.linalg.qr(randn(TOKENS, DIM)).Q * p for p in power)

    def error(kept):
        return (query @ key.T - query[:, kept] @ key[:, kept].T).norm().item()

    for rank in range(2, DIM, 2):
        choices = combinations(range(HALF if rotary else DIM), rank // 2 if rotary else rank)
        best = min(error([*c, *(i + HALF for i in c)] if rotary else [*c]) for c in choices)
        kept = cr_select(gram(query)[None, None], gram(key)[None], rank, rotary)[0]
        assert error(kept) == pytest.approx(best)


@pytest.mark.parametrize("rotary", [True, False])
def test_every_key_head_is_selected_on_its_own(queries, keys, gram, rotary):
    query, key = gram(queries), gram(keys)
    first, second = (orders(query[h : h + 1], key[h : h + 1], rotary=rotary)[0] for h in range(HEADS))
    assert orders(query, key, rotary=rotary) == [first, second]
    assert first != second


@pytest.mark.parametrize("rotary", [True, False])
def test_the_whole_group_decides_together(rotary):
    """The first head alone would keep dim 0; the others together outvote it."""
    power = torch.tensor([[9.0, 1, 9, 1], [1, 4, 1, 4], [1, 4, 1, 4], [1, 4, 1, 4]])
    query, key = torch.diag_embed(power)[None], torch.eye(4)[None]
    wanted = [[1, 3]]
    assert cr_select(query, key, 2, rotary).tolist() == wanted
    assert cr_select(query[:, :1], key, 2, rotary).tolist() == [[0, 2]]


@pytest.mark.parametrize("rotary", [True, False])
def test_the_group_adds_norms_and_not_their_squares(rotary):
    """2 + 0 < 1.1 + 1.1, but 4 + 0 > 1.21 + 1.21."""
    query, key = torch.diag_embed(torch.tensor([[2.0, 1.1, 2, 1.1], [0, 1.1, 0, 1.1]]) ** 2)[None], torch.eye(4)[None]
    for pair_score in PAIR_SCORES:
        assert cr_select(query, key, 2, rotary, pair_score).tolist() == [[1, 3]]


@pytest.mark.parametrize("rotary", [True, False])
def test_a_head_that_is_always_zero_still_gets_dims(rotary):
    zero = torch.zeros(1, GROUP, DIM, DIM, dtype=torch.float64)
    assert len(set(cr_select(zero, zero[:, 0], 4, rotary)[0].tolist())) == 4


def test_an_unknown_pair_score_is_refused(queries, keys, gram):
    with pytest.raises(ModegptError, match="pair_score is one of joint, sum, got 'product'"):
        cr_select(gram(queries), gram(keys), 4, pair_score="product")
