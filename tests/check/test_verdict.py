import pytest
import torch

from modegpt.check import NotYet, expect
from modegpt.check.verdict import answer, close, expect_tensor
from modegpt.errors import ModegptError


def test_a_verdict_is_one_line_in_a_notebook():
    with pytest.raises(NotYet) as error:
        expect(False, "the root is missing")
    assert error.value._render_traceback_() == ["Not yet: the root is missing"]
    assert ModegptError("no such layer")._render_traceback_() == ["modegpt: no such layer"]


def _stops():
    return [][0]


def test_whatever_an_answer_raises_becomes_a_verdict():
    def unfinished():
        raise NotImplementedError

    with pytest.raises(NotYet, match="unfinished has no solution yet"):
        answer(unfinished)
    with pytest.raises(NotYet, match="_stops stops with IndexError"):
        answer(_stops)
    assert answer(max, 1, 2) == 2


@pytest.mark.parametrize("value", [None, torch.zeros(3), torch.full((2,), torch.nan)])
def test_a_wrong_kind_of_tensor_is_named(value):
    with pytest.raises(NotYet, match="scores"):
        expect_tensor(value, (2,), "scores")
    expect_tensor(torch.zeros(2), (2,), "scores")


def test_close_is_relative():
    assert close(torch.tensor([1e6, 1.0]), torch.tensor([1e6 + 1e-4, 1.0]))
    assert not close(torch.tensor([1e-3]).double(), torch.tensor([1.1e-3]).double())
