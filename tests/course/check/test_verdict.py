import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modegpt.course.check import NotYet, expect, verdict
from modegpt.course.check.verdict import answer, close, expect_tensor
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
    with pytest.raises(NotYet, match=r"_stops stops with IndexError: .* \(at `return \[\]\[0\]`\)"):
        answer(_stops)
    assert answer(max, 1, 2) == 2


def test_the_line_is_the_readers_own_and_not_torchs():
    def product(a, b):
        mixed = torch.matmul(a, b)
        return mixed

    with pytest.raises(NotYet, match=r"\(at `mixed = torch.matmul\(a, b\)`\)"):
        answer(product, torch.zeros(2, 3), torch.zeros(2, 3))
    assert "at `" not in _says(eval("lambda: [][0]"))  # no file, no line


def _says(function, *arguments):
    with pytest.raises(NotYet) as error:
        answer(function, *arguments)
    return str(error.value)


def test_a_forgotten_return_is_named():
    def forgetful(x):
        x + 1

    assert "returns nothing" in _says(forgetful, 1)


def test_an_endless_loop_ends(monkeypatch):
    def endless():
        while True:
            pass

    monkeypatch.setattr(verdict, "SECONDS", 0.1)
    assert "does every loop end? (at `" in _says(endless)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_there_is_no_time_limit_in_another_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(answer, max, 1, 2).result() == 2


def test_a_tensor_that_was_changed_is_named():
    def grow(x, y):
        y += 1
        return x + y

    assert "grow changes its argument y in place" in _says(grow, torch.zeros(2), torch.zeros(2))
    assert answer(lambda x: x.add(1), torch.zeros(2)).sum() == 2


@pytest.mark.parametrize("value", [None, torch.zeros(3), torch.full((2,), torch.nan)])
def test_a_wrong_kind_of_tensor_is_named(value):
    with pytest.raises(NotYet, match="scores"):
        expect_tensor(value, (2,), "scores")
    expect_tensor(torch.zeros(2), (2,), "scores")


def test_close_is_relative():
    assert close(torch.tensor([1e6, 1.0]), torch.tensor([1e6 + 1e-4, 1.0]))
    assert not close(torch.tensor([1e-3]).double(), torch.tensor([1.1e-3]).double())
