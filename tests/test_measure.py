"""Measured allocation: divergences by a second way, curves between them, and the ranks they lead to."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from modegpt.allocate import MODULES, ranks_for, sizes_of, uniform_allocation, units_of
from modegpt.calibrate import collect, walk
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.measure import Curves, _interpolate, measure, measured_allocation, measuring_windows
from modegpt.pipeline import compress, decompose_layer

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"ratio": 0.3, "multiple_of": 2, "allocation": "measured", "measure_tokens": 512}


@pytest.fixture
def many(tokens):
    return tokens.repeat(8, 1)[:, :64]


def curves_of(model, data, **options) -> Curves:
    family, statistics = family_of(model), collect(model, data)
    decompose = partial(decompose_layer, rotary=family.rotary)
    return measure(model, family, data, enumerate(statistics), decompose, multiple_of=2, tokens=512, **options)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_opt"])
def test_a_divergence_is_that_of_the_model_with_one_small_module(name, many, request):
    """By hand: compress with all ranks whole but one, and compare the two models' distributions."""
    dense = request.getfixturevalue(name)().double()
    curves = curves_of(dense, many)
    windows = measuring_windows(many, 512)
    layer, module, size, value = next(row for row in curves.measured if row[:2] == (1, "mlp"))
    with pytest.MonkeyPatch.context() as patch:
        shape = family_of(dense).shape(dense)
        whole = ranks_for(uniform_allocation(3, 0.0), shape, 2)
        ranks = [replace(r, **{module: size}) if i == layer else r for i, r in enumerate(whole)]
        patch.setattr("modegpt.pipeline.ranks_for", lambda phi, *_: ranks[: len(phi)])
        small, _ = compress(copy.deepcopy(dense), collect(dense, many), ratio=0.1, multiple_of=2)
    with torch.no_grad():
        p, q = (model(windows).logits.log_softmax(-1) for model in (dense, small))
    assert value == pytest.approx(
        (p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3
    )  # the logits are compared in float32


def test_layers_out_of_reach_make_no_difference(tiny_llama, many):
    """Streaming carries all changed states along, where memory lets each run to the end at once."""
    dense = tiny_llama()
    at_once, carried = curves_of(dense, many), curves_of(dense, many, wait=True)
    assert [row[:3] for row in at_once.measured] == [row[:3] for row in carried.measured]
    assert_close(*(torch.tensor([row[3] for row in c.measured]) for c in (at_once, carried)), rtol=1e-4, atol=1e-9)


def test_an_interrupted_measuring_goes_on(tiny_llama, many):
    dense, seen = tiny_llama(), []

    class Stop(Exception):
        pass

    def stop(found):
        seen[:] = found
        if len(found) > 8:
            raise Stop

    with pytest.raises(Stop):
        curves_of(dense, many, on_measured=stop)
    fresh = []
    curves = curves_of(dense, many, measured=seen, on_measured=lambda found: fresh.append(len(found)))
    assert fresh[0] >= len(seen) and curves == curves_of(dense, many)


def test_curves_pass_through_what_was_measured_and_never_rise_with_size():
    residual = torch.tensor([16.0, 9.0, 4.0, 1.0, 0.0])
    sizes = torch.arange(1, 5)
    found = _interpolate(residual, {1: 0.9, 3: 0.05}, sizes)
    assert_close(found[[0, 2, 3]], torch.tensor([0.9, 0.05, 0.0], dtype=torch.float64))
    assert found[0] > found[1] > found[2]
    assert_close(_interpolate(residual, {2: 0.4}, sizes)[0].item(), 0.9)  # one point: proportional to the residual
    noisy = _interpolate(residual, {1: 0.05, 3: 0.06}, sizes)
    assert noisy.diff().max() <= 0
    dead = torch.tensor([0.5, 0.3, 1e-11, 1e-11, 0.0])  # from 2 on nothing is lost, and 0 measured, to rounding
    assert _interpolate(dead, {2: 0.0}, sizes)[0] > 1  # which says nothing in favour of 1
    assert _interpolate(residual, {}, sizes[-1:]).tolist() == [0]  # --multiple-of leaves no other size


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37])
@pytest.mark.parametrize("modules", [MODULES, ("mlp",), ("value", "mlp")], ids=str)
def test_ranks_meet_the_budget_to_within_half_a_unit(tiny_llama, ratio, modules):
    shape = family_of(tiny_llama()).shape(tiny_llama())
    draw = torch.Generator().manual_seed(0)

    def curve(module):
        count = len(sizes_of(getattr(shape, module), units_of(shape, 2)[module]))
        falling = torch.rand(count, generator=draw, dtype=torch.float64).sort(descending=True).values
        falling[-1] = 0
        return falling.tolist()

    curves = Curves(512, [], [{module: curve(module) for module in modules} for _ in range(5)])
    phi, ranks, _ = measured_allocation(curves, shape, ratio, 2)
    kept = sum(shape.parameters(r.query_key, r.value, r.mlp) for r in ranks)
    unit = shape.mlp_cost * 2
    assert kept <= (1 - ratio) * 5 * shape.total + unit / 2 + 1e-6
    assert phi.mean().item() == pytest.approx(1 - kept / (5 * shape.total))
    untouched = set(MODULES) - set(modules)
    assert all(getattr(r, module) == getattr(shape, module) for r in ranks for module in untouched)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_opt"])
def test_the_whole_method(name, many, request):
    dense = request.getfixturevalue(name)()
    small, report = compress(copy.deepcopy(dense), many, **OPTIONS)
    assert abs(report.block_ratio - 0.3) < 0.02
    assert report.measured["tokens"] == 480 and report.measured["expected"] > 0
    known = {"curves": Curves(512, report.measured["divergences"], curves_of(dense, many).expected)}
    again, _ = compress(copy.deepcopy(dense), many, known=known, **OPTIONS)
    assert small.config.mlp_ranks == again.config.mlp_ranks


def test_what_cannot_be_measured_is_refused(tiny_llama, many):
    with pytest.raises(ModegptError, match="needs 256 tokens to measure on, got 40"):
        compress(tiny_llama(), many[:1], **OPTIONS)
    with pytest.raises(ModegptError, match="give tokens to calibrate on"):
        compress(tiny_llama(), collect(tiny_llama(), many), **OPTIONS)
    with pytest.raises(ModegptError, match="without padding"):
        compress(tiny_llama(), {"input_ids": many, "attention_mask": (many > 5).long()}, **OPTIONS)
    with pytest.raises(ModegptError, match="lower the ratio"):
        compress(tiny_llama(), many, **OPTIONS | {"ratio": 0.99})
    broken = tiny_llama()
    broken.lm_head.weight.data[0] = torch.inf
    with pytest.raises(ModegptError, match=r"NaN or inf|not finite"):
        compress(broken, many, **OPTIONS)


def test_walking_gives_what_kept_statistics_give(tiny_llama, many):
    dense = tiny_llama()
    family = family_of(dense)
    decompose = partial(decompose_layer, rotary=True)
    walked = measure(dense, family, many, walk(dense, family, many), decompose, multiple_of=2, tokens=512)
    assert walked == curves_of(dense, many)
