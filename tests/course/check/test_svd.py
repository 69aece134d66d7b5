"""The checks of the value-output lesson accept right answers and name the wrong ones."""

import numpy as np
import pytest
import torch

from modegpt.course.check import NotYet
from modegpt.course.check import svd as check


def unfinished(*arguments):
    raise NotImplementedError


def cut(matrix, rank, power=1):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] ** power, vt[:rank]


def half(gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.sqrt() @ vectors.mT


def upper(gram):
    return torch.linalg.cholesky(gram).mT


@pytest.mark.parametrize(
    "function", [check.one_svd, check.orthonormal_outputs, check.solve_output, check.smallest_joint_rank]
)
def test_an_unfinished_function_is_told_so(function):
    with pytest.raises(NotYet, match="no solution yet"):
        function(unfinished)


# 05.1


def weighted(root, product, rank):
    p, q = cut(root @ product, rank)
    return torch.linalg.solve(root, p), q


def two_svds(gram, value, output, rank):
    root = half(gram)
    u, s, vt = torch.linalg.svd(root @ value, full_matrices=False)
    u2, s2, vt2 = torch.linalg.svd(s[:, None] * vt @ output, full_matrices=False)
    return torch.linalg.solve(root, u @ u2[:, :rank]), s2[:rank, None] * vt2[:rank]


@pytest.mark.parametrize(
    "right",
    [
        lambda c, v, o, k: weighted(half(c), v @ o, k),
        lambda c, v, o, k: weighted(upper(c), v @ o, k),  # any root
    ],
)
def test_any_root_passes(right, capsys):
    check.one_svd(right)
    assert "Right" in capsys.readouterr().out


def early(gram, value, output, rank):
    root = half(gram)
    p, q = cut(root @ value, rank)
    return torch.linalg.solve(root, p), q @ output


def smallest(gram, value, output, rank):
    root = half(gram)
    u, s, vt = torch.linalg.svd(root @ value @ output, full_matrices=False)
    keep = slice(value.shape[1] - rank, value.shape[1])
    return torch.linalg.solve(root, u[:, keep] * s[keep]), vt[keep]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c, v, o, k: cut(v @ o, k), "weights alone"),
        (lambda c, v, o, k: cut(half(c) @ v @ o, k), "never taken back"),
        (lambda c, v, o, k: weighted(c, v @ o, k), "weighs with C"),
        (early, "before W_O has been seen"),
        (two_svds, "it took 2 SVDs"),
        (lambda c, v, o, k: [m.float() for m in weighted(upper(c), v @ o, k)], "it is torch.float32"),
        (lambda c, v, o, k: [m.double() for m in weighted(upper(c).float(), (v @ o).float(), k)], "is float32"),
        (lambda c, v, o, k: weighted(torch.linalg.cholesky(c), v @ o, k), "wrong way round"),
        (lambda c, v, o, k: (torch.linalg.solve(half(c), cut(half(c) @ v @ o, k, 0)[0]), cut(half(c) @ v @ o, k)[1]),
         "missing"),
        (lambda c, v, o, k: (torch.linalg.solve(half(c), cut(half(c) @ v @ o, k, 2)[0]), cut(half(c) @ v @ o, k)[1]),
         "both factors"),
        (smallest, "smallest"),
        (lambda c, v, o, k: (v, o), "shape"),
        (lambda c, v, o, k: weighted(half(c), v @ o, k)[0], "two matrices"),
    ],
)  # fmt: skip
def test_wrong_pairs_of_one_svd_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.one_svd(wrong)


# 05.2


def shortcut(root, value, output, rank, inverse=None, power=1):
    p, q = cut(root @ output, rank, power)
    return value @ torch.linalg.solve(root if inverse is None else inverse, p), q


def lesson_pair(gram, value, output, rank):
    """The right product with the scale in W_O."""
    root = upper(gram)
    u = cut(root @ output, rank, 0)[0]
    return value @ torch.linalg.solve(root, u), u.mT @ root @ output


def flipped(gram, value, output, rank):
    p, q = shortcut(upper(gram), value, output, rank)
    return -p, -q


@pytest.mark.parametrize(
    "right", [lambda g, v, o, k: shortcut(upper(g), v, o, k), lambda g, v, o, k: shortcut(half(g), v, o, k), flipped]
)
def test_any_root_and_sign_of_the_shortcut_pass(right):
    check.orthonormal_outputs(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lesson_pair, "not orthonormal"),
        (lambda g, v, o, k: shortcut(upper(g).mT, v, o, k), "takes L for the root"),
        (lambda g, v, o, k: shortcut(upper(g), v, o, k, torch.eye(len(g), dtype=g.dtype)), "R\\^-1 is missing"),
        (lambda g, v, o, k: shortcut(upper(g), v, o, k, upper(g).mT), "inverse used R\\^T"),
        (lambda g, v, o, k: shortcut(g, v, o, k), "weighs with G"),
        (lambda g, v, o, k: shortcut(torch.eye(len(g), dtype=g.dtype), v, o, k), "W_O alone"),
        (lambda g, v, o, k: shortcut(upper(g), v, o, k, power=0), "missing"),
        (lambda g, v, o, k: shortcut(upper(g), v, o, k, power=2), "twice"),
    ],
)
def test_wrong_shortcuts_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.orthonormal_outputs(wrong)


# 05.3


def solved(gram, chosen, output, left=None, right=None):
    left, right = (chosen.mT @ (gram if root is None else root) for root in (left, right))
    return torch.linalg.solve(left @ chosen, right @ output)


@pytest.mark.parametrize(
    "right",
    [
        solved,
        lambda g, c, o: torch.linalg.pinv(upper(g) @ c) @ upper(g) @ o,
        lambda g, c, o: torch.linalg.lstsq(half(g) @ c, half(g) @ o).solution,
    ],
)
def test_the_best_outputs_of_given_values_pass(right):
    check.solve_output(right)


def eye(gram):
    return torch.eye(len(gram), dtype=gram.dtype)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g, c, o: torch.linalg.pinv(c) @ o, "fits W_O"),
        (lambda g, c, o: c.mT @ o, "solves nothing"),
        (lambda g, c, o: c.mT @ g @ o, "left side is missing"),
        (lambda g, c, o: solved(g, c, o, left=eye(g)), "missing on the left"),
        (lambda g, c, o: solved(g, c, o, right=eye(g)), "missing on the right"),
        (lambda g, c, o: solved(g @ g, c, o), "G twice"),
        (lambda g, c, o: solved(g + 0.1 * g.diagonal().mean() * eye(g), c, o), "another W_O"),
        (lambda g, c, o: c.mT @ torch.linalg.inv(g) @ c @ c.mT @ g @ o, "then invert"),
        (lambda g, c, o: solved(g, c, o).mT, "shape"),
        (lambda g, c, o: solved(g.float(), c.float(), o.float()), "it is torch.float32"),
    ],
)
def test_wrong_outputs_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.solve_output(wrong)


# 05.4


def rank_of(matrix, budget, power=2, shift=0):
    powers = torch.linalg.svdvals(matrix) ** power
    discarded = powers.sum() - powers.cumsum(0)
    return int((discarded > budget * powers.sum()).sum()) + 1 + shift


def stacked(output):
    return torch.cat(list(output), dim=1)


@pytest.mark.parametrize(
    "right",
    [
        lambda g, o, b: rank_of(upper(g) @ stacked(o), b),
        lambda g, o, b: torch.tensor(rank_of(half(g) @ stacked(o), b)),
        lambda g, o, b: np.int64(rank_of(half(g) @ stacked(o), b)),
    ],
)
def test_the_smallest_rank_passes_by_any_root(right):
    check.smallest_joint_rank(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), b, power=1), "square them"),
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), b, power=4), "fourth powers"),
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), 1 - b), "what is discarded"),
        (lambda g, o, b: rank_of(stacked(o), b), "W_O alone"),
        (lambda g, o, b: rank_of(g @ stacked(o), b), "weighs with G"),
        (lambda g, o, b: rank_of(upper(g).mT @ stacked(o), b), "takes L for the root"),
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), b, shift=1), "one too many"),
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), b, shift=-1), "one too few"),
        (lambda g, o, b: max(rank_of(upper(g) @ one, b) for one in o), "each query head alone"),
        (lambda g, o, b: rank_of(upper(g) @ o[0], b), "first query head"),
        (lambda g, o, b: rank_of(upper(g) @ o.mean(0), b), "averages W_O"),
        (lambda g, o, b: rank_of(upper(g) @ stacked(o), b) / 2, "whole number"),
        (lambda g, o, b: rank_of(upper(g) @ o.reshape(len(g), -1), b), "reshape mixes"),
        (lambda g, o, b: rank_of((upper(g) @ o).flatten(0, 1), b), "one below the other"),
        (lambda g, o, b: 3, "smallest rank is"),
    ],
)
def test_wrong_ranks_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.smallest_joint_rank(wrong)
