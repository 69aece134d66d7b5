"""Correction: a ridge regression, by hand and as a whole."""

import copy

import pytest
import torch
from torch.testing import assert_close

from modegpt.calibrate import collect, tapped
from modegpt.correct import RIDGE, refit
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.pipeline import compress

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = pytest.mark.parametrize("name", ["tiny_llama", "tiny_opt"])


def test_refit_is_the_least_squares_solution_with_a_ridge():
    draw = torch.Generator().manual_seed(0)
    z, error = (torch.randn(200, n, dtype=torch.float64, generator=draw) for n in (12, 5))
    gram = z.mT @ z
    ridge = (0.1 * gram.diagonal().mean()).sqrt() * torch.eye(12, dtype=torch.float64)
    by_hand = torch.linalg.lstsq(torch.cat([z, ridge]), torch.cat([error, torch.zeros(12, 5).double()])).solution
    assert_close(refit(gram, z.mT @ error, 0.1), by_hand, rtol=1e-9, atol=1e-11)


@FAMILIES
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_ratio_0_is_the_identity(name, share, tokens, request):
    dense = request.getfixturevalue(name)().double()
    small, _ = compress(copy.deepcopy(dense), tokens, ratio=0, correct=share)
    with torch.no_grad():
        assert_close(small(tokens).logits, dense(tokens).logits, rtol=1e-9, atol=1e-9)


@FAMILIES
def test_the_first_output_matrix_by_hand(name, tokens, request):
    """In layer 0 both streams agree, so W_O is fitted to the whole attention's output, whatever the share."""
    dense = request.getfixturevalue(name)().double()
    plain, _ = compress(copy.deepcopy(dense), tokens, ratio=0.3, multiple_of=2)
    small, _ = compress(copy.deepcopy(dense), tokens, ratio=0.3, multiple_of=2, correct=0.5)
    family, (attention, _) = family_of(dense), family_of(dense).outputs
    first = [family.layers(m)[0].get_submodule(attention) for m in (dense, plain, small)]
    with torch.no_grad(), tapped({"wanted": (first[0], "output")}) as whole:
        dense(tokens)
    with torch.no_grad(), tapped({"z": (first[1], "input"), "given": (first[1], "output")}) as cut:
        plain(tokens)
    z, error = cut["z"].flatten(0, 1), (whole["wanted"] - cut["given"]).flatten(0, 1)
    gram = z.mT @ z
    scale = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    wanted = first[1].weight + torch.linalg.solve(gram + scale, z.mT @ error).mT
    assert_close(first[2].weight, wanted, rtol=1e-4, atol=1e-6)


@FAMILIES
def test_it_lowers_the_error_on_the_text_that_it_sees(name, tokens, request):
    dense = request.getfixturevalue(name)().double()
    statistics, errors = collect(dense, tokens), {}
    for share in (0.0, 0.5, 1.0):
        small, report = compress(
            copy.deepcopy(dense), tokens, statistics=statistics, ratio=0.4, multiple_of=2, correct=share
        )
        assert ("correct" in report.seconds) == bool(share)
        with torch.no_grad():
            errors[share] = (small(tokens).logits - dense(tokens).logits).norm().item()
    assert errors[0.5] < errors[0.0] and errors[1.0] < errors[0.0]


def test_what_it_does_not_know_is_refused(tiny_llama, tiny_opt, tokens):
    with pytest.raises(ModegptError, match=r"in \[0, 1\], got 1.5"):
        compress(tiny_llama(), tokens, ratio=0.3, correct=1.5)
    with pytest.raises(ModegptError, match="dense inputs"):
        compress(tiny_llama(), tokens, ratio=0.3, correct=0.5, inputs="compressed")
    with pytest.raises(ModegptError, match="norms before"):
        compress(tiny_opt(do_layer_norm_before=False), tokens, ratio=0.3, correct=0.5)
