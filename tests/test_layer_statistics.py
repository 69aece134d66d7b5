"""Statistics that wait in the host's memory come back as they went."""

from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from modegpt.gram import NARROW, upper, whole
from modegpt.layer_statistics import LayerStatistics, WaitingStatistics

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def symmetric(*shape: int) -> torch.Tensor:
    rows = torch.randn(*shape, dtype=torch.float64)
    return rows + rows.mT


@pytest.mark.parametrize("n", [1, 7, NARROW, NARROW + 3])
def test_the_upper_block_rows_are_enough(n):
    matrix = symmetric(2, n, n)
    blocks = upper(matrix)
    assert torch.equal(whole([block.clone() for block in blocks]), matrix)
    assert sum(block.numel() for block in blocks) <= matrix.numel()


@pytest.mark.parametrize("device", DEVICES)
def test_every_layer_comes_back_as_it_went_and_more_than_once(device):
    torch.manual_seed(0)
    device = torch.device(device)
    given = [
        LayerStatistics(9, 0.1 * i, symmetric(700, 700), torch.randn(700).double(), query=symmetric(2, 3, 8, 8))
        for i in range(3)
    ]
    given.append(LayerStatistics(9, 0.5))  # of a layer that another rank decomposes
    waiting = WaitingStatistics(device)
    for entry in given:
        moved = {f.name: getattr(entry, f.name) for f in fields(entry)}
        waiting.append(LayerStatistics(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in moved.items()}))
    assert waiting.block_influence == [entry.block_influence for entry in given]
    for _ in range(2):
        for (index, back), entry in zip(waiting, given, strict=True):
            assert back.tokens == 9 and given[index] is entry
            for field in fields(entry):
                was, now = getattr(entry, field.name), getattr(back, field.name)
                if torch.is_tensor(was):
                    assert now.device.type == device.type
                    assert_close(now.cpu(), was, rtol=0, atol=0)
                else:
                    assert now == was
