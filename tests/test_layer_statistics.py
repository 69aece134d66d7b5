"""Packed statistics come back as they went."""

from concurrent.futures import CancelledError
from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from modegpt.gram import NARROW, upper, whole
from modegpt.layer_statistics import LayerStatistics, PackedStatistics

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def symmetric(*shape: int, device: str = "cpu") -> torch.Tensor:
    rows = torch.randn(*shape, dtype=torch.float64, device=device)
    return rows + rows.mT


@pytest.mark.parametrize("n", [1, 7, NARROW, NARROW + 3])
def test_the_upper_block_rows_are_enough(n):
    matrix = symmetric(2, n, n)
    blocks = upper(matrix)
    assert torch.equal(whole([block.clone() for block in blocks]), matrix)
    assert sum(block.numel() for block in blocks) <= matrix.numel()


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 0.0), (torch.float32, 1e-7)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_every_layer_comes_back_as_it_went_and_more_than_once(dtype, exact, device):
    torch.manual_seed(0)
    small = {"mlp_mean": symmetric(1, 700, 700, device=device)[0, 0], "query": symmetric(2, 3, 8, 8, device=device)}
    small["attention"] = symmetric(600, 600, device=device)
    given = [LayerStatistics(9, 0.1 * i, symmetric(700, 700, device=device), **small) for i in range(3)]
    given.append(LayerStatistics(9, 0.5))  # of a layer that another rank decomposes
    packed = PackedStatistics(dtype, torch.device(device))
    for entry in given:
        packed.append(entry)
    copies = [waiting for _, waiting in packed.packed if waiting]
    parts = [block for waiting in copies for blocks in waiting.result().values() for block in blocks]
    assert all(block.device.type == "cpu" for block in parts)
    kept = sum(block.untyped_storage().nbytes() for block in parts)
    assert kept == 3 * packed.bytes_for(700, 600)  # and no view of the whole lives on
    assert packed.block_influence == [entry.block_influence for entry in given]
    for packed.last_time in (False, True):
        for back, entry in zip(packed, given, strict=True):
            assert back.tokens == 9
            for field in fields(entry):
                was, now = getattr(entry, field.name), getattr(back, field.name)
                if torch.is_tensor(was):
                    assert now.dtype == torch.float64
                    assert_close(now, was, rtol=exact, atol=exact)
                else:
                    assert now == was
    with pytest.raises(CancelledError):  # nothing is kept behind the last time
        next(iter(packed))
