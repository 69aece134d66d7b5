import pytest
import torch

from modegpt.study.bench.floors import Rates, floors, measure_rates
from modegpt.study.bench.shapes import random_model

SIZES = {"ratio": 0.3, "samples": 128, "length": 2048}


def test_the_floors_of_a_7b_shape_by_hand():
    """Two operations a weight and token, n^2 a token for half of a symmetric product, n^3 / 3 for a factor."""
    model = random_model("llama-2-7b", device="meta")
    once, twice = (floors(model, SIZES, walks, Rates(1.0, 1.0, 1.0)) for walks in (1, 2))
    tokens, weights, n, width, kept = 128 * 2048, 4 * 4096**2 + 3 * 4096 * 11008, 11008, 4096, 7706
    assert once["forward"] == pytest.approx(32 * tokens * (2 * weights + 4 * 4096 * 2049 / 2))
    assert twice["forward"] == 2 * once["forward"]
    triangle = (n**2 + 7 * 1408**2 + 1152**2) / 2  # with the whole of its diagonal blocks
    assert once["Gram matrices"] == pytest.approx(32 * 2 * tokens * triangle)
    solves = 2 * n**3 / 3 + kept**3 / 3 + 2 * kept**2 * width + 2 * kept * (n - kept) * width
    assert once["solves"] == pytest.approx(32 * solves)
    assert once["copies"] == pytest.approx(32 * 2 * 2 * 0.7 * weights)


def test_rates_are_those_of_this_device():
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert rates.products > rates.solves > 1e8 and rates.copies > 1e8
