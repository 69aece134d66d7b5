"""Gram matrices in blocks against the product written out."""

import pytest
import torch

from modegpt.gram import GramSum, gram


@pytest.mark.parametrize("shape", [(7, 5), (40, 513), (30, 1100), (2, 9, 8), (2, 3, 9, 8), (3, 6, 600)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_add_up_to_the_gram_matrix_of_all_rows(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(shape, dtype=dtype, generator=draw) for _ in range(3)]
    total = GramSum(torch.float64)
    for rows in batches:
        total.add(rows)
    rows = torch.cat(batches, -2).double()
    wanted = torch.einsum("...ti,...tj->...ij", rows, rows)
    found = total.matrix()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, found.mT)


def test_half_precision_is_upcast_before_it_is_squared():
    rows = torch.full((3, 600), 300.0, dtype=torch.float16)  # 90,000 is beyond float16
    assert torch.equal(gram(rows), torch.full((600, 600), 270000.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4096, 1100), (3, 2, 4096, 64)], ids=str)
def test_tensor_cores_agree_with_float64(shape, dtype):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).cuda()
    wanted = rows.double().mT @ rows.double()
    assert ((gram(rows).double() - wanted).norm() / wanted.norm()).item() < 1e-4
