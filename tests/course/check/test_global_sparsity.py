import math

import pytest
import torch

from modegpt.allocate import softmax_allocation
from modegpt.course.check import NotYet
from modegpt.course.check import global_sparsity as check
from modegpt.errors import ModegptError


def _unfinished(*_arguments):
    raise NotImplementedError


@pytest.mark.parametrize(
    "checked",
    [check.masked_block_influence, check.sized_allocation, check.capped_allocation, check.heads_and_channels],
)
def test_an_unfinished_function_is_told_so(checked):
    with pytest.raises(NotYet, match="no solution yet"):
        checked(_unfinished)


def _cosine(x_in, x_out):
    return torch.cosine_similarity(x_in, x_out, dim=-1)


def _influence(x_in, x_out, mask):
    real = mask.bool()
    return 1 - _cosine(x_in[real], x_out[real]).mean()


def _mean_vectors(x_in, x_out, mask):
    real = mask.bool()
    return 1 - torch.cosine_similarity(x_in[real].mean(0), x_out[real].mean(0), dim=0)


def _padded_behind(x_in, x_out, mask):
    rows = [_cosine(a[:length], b[:length]) for a, b, length in zip(x_in, x_out, mask.sum(1), strict=True)]
    return 1 - torch.cat(rows).mean()


def _mean_norms(x_in, x_out, mask):
    a, b = x_in[mask.bool()], x_out[mask.bool()]
    return 1 - (a * b).sum(-1).mean() / (a.norm(dim=-1) * b.norm(dim=-1)).mean()


@pytest.mark.parametrize(
    "right", [_influence, lambda *a: _influence(*a).item(), lambda a, b, m: _influence(a.float(), b.float(), m)]
)
def test_block_influence_is_accepted_as_tensor_float_and_single_precision(right, capsys):
    check.masked_block_influence(right)
    assert "Right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b, m: 1 - _influence(a, b, m), "one minus"),
        (lambda a, b, m: 1 - _cosine(a, b).mean(), "padding is counted"),
        (lambda a, b, m: ((1 - _cosine(a, b)) * m).mean(), "mask.sum"),
        (lambda a, b, m: 1 - (_cosine(a, b) * m).mean(), "leave the padding out"),
        (lambda a, b, m: (((1 - _cosine(a, b)) * m).sum(1) / m.sum(1)).mean(), "each sequence first"),
        (lambda a, b, m: 1 - _cosine(a[m], b[m]).mean(), "bool"),
        (_mean_vectors, "mean vectors"),
        (_mean_norms, "mean of norms"),
        (lambda a, b, m: 1 - _cosine(a[m.bool()].flatten(), b[m.bool()].flatten()), "flattened"),
        (lambda a, b, m: 1 - (a[m.bool()].norm(dim=-1) / b[m.bool()].norm(dim=-1)).mean(), "lengths"),
        (lambda a, b, m: _influence(a, b, 1 - m), "1 at real tokens"),
        (lambda a, b, m: 1 - (a * b).sum(-1)[m.bool()].mean(), "two lengths"),
        (lambda a, b, m: 1 - _cosine(a, b)[m.bool()].abs().mean(), "may be negative"),
        (_padded_behind, "stand in front too"),
        (lambda a, b, m: _cosine(a, b), r"one number, it is a tensor of shape \(3, 8\)"),
        (lambda a, b, m: ((a - b).norm(dim=-1) * m).sum() / m.sum(), "one cosine per real token"),
    ],
)
def test_block_influence_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.masked_block_influence(wrong)


def _sized(scores, sizes, ratio, epsilon):
    share = torch.softmax(-scores / epsilon, 0)
    return ratio * sizes.sum() * share / (sizes * share).sum()


@pytest.mark.parametrize("right", [_sized, lambda s, w, r, e: _sized(s.float(), w.float(), r, e)])
def test_the_allocation_of_unequal_layers_is_accepted(right):
    check.sized_allocation(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s, w, r, e: _sized(-s, w, r, e), "sign"),
        (lambda s, w, r, e: len(s) * r * torch.softmax(s / e, 0), "sign"),
        (lambda s, w, r, e: r * torch.softmax(-s / e, 0), "factor L"),
        (lambda s, w, r, e: len(s) * r * torch.softmax(-s / e, 0), "one size"),
        (lambda s, w, r, e: _sized(s, w, r, 1 / e), "multiplies by epsilon"),
        (lambda s, w, r, e: r * w.sum() * torch.softmax(-s / e, 0) / w, "shares out parameters"),
        (lambda s, w, r, e: _sized(s - e * w.log(), w, r, e), "cancel in the gradient"),
        (lambda s, w, r, e: 1 - _sized(s, w, r, e), "what stays"),
        (lambda s, w, r, e: 1.01 * _sized(s, w, r, e), "of the parameters go"),
        (lambda s, w, r, e: torch.full_like(s, r), "gradients differ"),
        (lambda s, w, r, e: _sized(s, w, r, e) * (1 if w[0] != w[1] else 2), "equal sizes"),
        (lambda s, w, r, e: _sized(s, w, r, e)[:-1], "shape"),
    ],
)
def test_the_allocation_of_unequal_layers_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.sized_allocation(wrong)


def _raw(s, r, e):
    return len(s) * r * torch.softmax(-s / e, 0)


def _refusing(function):
    """An allocation that refuses what cannot be, so that another mistake is the one that counts."""

    def wrapped(s, r, e, caps):
        if r > caps.mean():
            raise ModegptError("infeasible")
        return function(s, r, e, caps)

    return wrapped


def _in_rounds(s, r, e, caps):
    free = torch.ones(len(s), dtype=torch.bool)
    while True:
        phi = caps.clone()
        phi[free] = (len(s) * r - caps[~free].sum()) * torch.softmax(-s[free] / e, 0)
        if (phi <= caps).all():
            return phi
        free &= phi <= caps


def _once(s, r, e, caps):
    raw = _raw(s, r, e)
    over = raw > caps
    return torch.where(over, caps, raw * (len(s) * r - caps[over].sum()) / raw[~over].sum())


def _evenly(s, r, e, caps):
    raw = _raw(s, r, e)
    over = raw > caps
    return torch.where(over, caps, raw + (raw - raw.minimum(caps)).sum() / max(int((~over).sum()), 1))


def _bisected(s, r, e, caps, high=1e6):
    low, weights = 0.0, torch.softmax(-s / e, 0)
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (c * weights).minimum(caps).mean() < r else (low, c)
    return (c * weights).minimum(caps)


def _refusing_plainly(s, r, e, caps):
    if r > caps.mean():
        raise ValueError("infeasible")
    return _in_rounds(s, r, e, caps)


def _silent(s, r, e, caps):
    return None if r > caps.mean() else _in_rounds(s, r, e, caps)


def _crashing(s, r, e, caps):
    if r > caps.mean():
        raise KeyError("none left")
    return _in_rounds(s, r, e, caps)


@pytest.mark.parametrize("right", [_refusing(_in_rounds), _refusing(_bisected)])
def test_a_capped_allocation_is_accepted_whatever_the_method(right):
    check.capped_allocation(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s, r, e, caps: _in_rounds(-s, r, e, caps), "sign"),
        (lambda s, r, e, caps: _in_rounds(s, r, e, caps) / len(s), "factor L"),
        (lambda s, r, e, caps: torch.full_like(s, r), "nothing reaches"),
        (lambda s, r, e, caps: _raw(s, r, e).minimum(caps), "clips and stops"),
        (lambda s, r, e, caps: _raw(s, r, e).minimum(caps) * r / _raw(s, r, e).minimum(caps).mean(), "rescaling all"),
        (_once, "one round"),
        (lambda *a: _once(*a).minimum(a[-1]), "one round"),
        (_evenly, "shared evenly"),
        (lambda s, r, e, caps: softmax_allocation(s, r, e, caps.max().item()), "the largest cap for all"),
        (lambda s, r, e, caps: softmax_allocation(s, r, e, caps.mean().item()), "the mean cap for all"),
        (lambda s, r, e, caps: softmax_allocation(s, r, e, caps.min().item()), "can be met"),
        (lambda s, r, e, caps: softmax_allocation(s, r, e, caps), "stops with|can be met"),
        (lambda s, r, e, caps: _raw(s, r, e), "more than its cap"),
        (lambda s, r, e, caps: 0.99 * _in_rounds(s, r, e, caps) if e == 0.2 else _raw(s, r, e), "the mean is"),
        (lambda s, r, e, caps: caps * r / caps.mean() if e == 0.2 else _raw(s, r, e), "proportional"),
        (lambda s, r, e, caps: 1.001 * _in_rounds(s, r, e, caps), "more steps"),
        (_bisected, "infeasible"),
        (_crashing, "should raise a ModegptError.*stops with KeyError"),
        (_refusing_plainly, "should raise a ModegptError.*stops with ValueError"),
        (lambda *a: [][0], "stops with IndexError"),
        (_silent, "should raise a ModegptError.*returns nothing"),
        (lambda s, r, e, caps: _bisected(s, r, e, caps, high=1.0), "higher upper end"),
        (lambda s, r, e, caps: _refusing(_in_rounds)(s, r, e, caps.clamp_(max=0.8)), "its argument caps in place"),
    ],
)
def test_a_capped_allocation_names_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.capped_allocation(wrong)


def _ranks(phi, d, d_cost, channels, channel_cost, unit, dims=None, paying=True):
    if dims is None:
        dims = min(max(math.ceil((1 - phi) * d / unit - 1e-9), 1) * unit, d)
    budget = (1 - phi) * (d * d_cost + channels * channel_cost)
    return dims, round((budget - dims * d_cost) / channel_cost if paying else (1 - phi) * channels)


def _with_dims(choose):
    return lambda phi, d, d_cost, channels, channel_cost, unit: _ranks(
        phi, d, d_cost, channels, channel_cost, unit, dims=choose(phi, d, unit)
    )


@pytest.mark.parametrize("right", [_ranks, lambda *a: [torch.tensor(rank) for rank in _ranks(*a)]])
def test_ranks_are_accepted_as_numbers_and_tensors(right):
    check.heads_and_channels(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_with_dims(lambda phi, d, unit: int((1 - phi) * d) // unit * unit), "rounding down"),
        (_with_dims(lambda phi, d, unit: min(round((1 - phi) * d / unit) * unit, d)), "to the nearest"),
        (_with_dims(lambda phi, d, unit: math.ceil(phi * d / unit) * unit), "what goes"),
        (_with_dims(lambda phi, d, unit: math.ceil((1 - phi) * d / unit - 1e-9) * unit), "cannot exceed"),
        (_with_dims(lambda phi, d, unit: min(math.ceil((1 - phi) * d / unit) * unit, d)), "a hair above"),
        (_with_dims(lambda phi, d, unit: d), "expected"),
        (_with_dims(lambda phi, d, unit: min(math.ceil((1 - phi) * d / unit - 1e-9) * unit, d)), "one multiple stays"),
        (lambda *a: _ranks(*a)[::-1], "turned around"),
        (lambda *a: (float(_ranks(*a)[0]), _ranks(*a)[1]), "int and not float"),
        (lambda *a: (_ranks(*a)[0], torch.tensor(float(_ranks(*a)[1]))), "int and not float"),
        (lambda *a: _ranks(*a, paying=False), "must pay"),
        (lambda *a: (_ranks(*a)[0], _ranks(*a)[1] - 2), "miss the budget"),
        (lambda *a: (_ranks(*a)[0], _ranks(*a)[1] + 0.25), "whole numbers"),
        (lambda *a: _ranks(*a)[0], "pair"),
    ],
)
def test_ranks_name_the_mistake(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.heads_and_channels(wrong)
