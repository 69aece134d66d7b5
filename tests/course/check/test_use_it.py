import pytest
import torch

from modegpt.course.check import NotYet
from modegpt.course.check import use_it as check


def width(ratio, heads, cost, channels, unit):
    exact = ((1 - ratio) * (heads + cost * channels) - heads) / cost
    if exact < 0:
        raise ValueError("the MLP cannot bear this")
    return unit * round(exact / unit)


def _exact(ratio, heads, cost, channels, unit):
    return ((1 - ratio) * (heads + cost * channels) - heads) / cost


def padded(ranks, dense, cost):
    sizes = ranks.clone()
    sizes[:, :2], sizes[:, 2] = dense[:2], ranks[:, 2].max()
    return 1 - ((sizes * cost).sum() / (len(ranks) * (dense * cost).sum())).item()


def _heads_to_the_widest(ranks, dense, cost):
    return 1 - (ranks.amax(0) * cost).sum() / (dense * cost).sum()


def _own_widths(ranks, dense, cost):
    sizes = ranks.clone()
    sizes[:, :2] = dense[:2]
    return 1 - (sizes * cost).sum() / (len(ranks) * (dense * cost).sum())


def choice(scores, k):
    one = scores.sum(0).topk(k).indices
    return (scores.topk(k).values.sum() / scores.sum()).item(), (scores[:, one].sum() / scores.sum()).item()


def _by(choose):
    def answer(scores, k):
        return choice(scores, k)[0], (scores[:, choose(scores, k)].sum() / scores.sum()).item()

    return answer


RIGHT = {check.stock_width: width, check.saved_after_padding: padded, check.one_choice: choice}
WRONG = [
    (check.stock_width, lambda r, h, c, n, u: u * round((1 - r) * n / u), "heads stay whole"),
    (check.stock_width, _exact, "no multiple"),
    (check.stock_width, lambda *a: a[4] * (_exact(*a) // a[4]), "the nearer one"),
    (check.stock_width, lambda *a: a[4] * -(-_exact(*a) // a[4]), "the nearer one"),
    (check.stock_width, lambda *a: a[4] * round(_exact(*a) / a[4]), "80 % is a ValueError"),
    (check.saved_after_padding, lambda r, d, c: 1 - (r * c).sum() / (len(r) * (d * c).sum()), "before padding"),
    (check.saved_after_padding, _own_widths, "one MLP width"),
    (check.saved_after_padding, _heads_to_the_widest, "old size"),
    (check.saved_after_padding, lambda r, d, c: 0.0, "widest layer's is enough"),
    (check.saved_after_padding, lambda *a: 1 - padded(*a), "left, not saved"),
    (check.one_choice, lambda s, k: choice(s, k)[0], "two numbers"),
    (check.one_choice, lambda s, k: (choice(s, k)[0],) * 2, "the same k pairs"),
    (check.one_choice, _by(lambda s, k: s[0].topk(k).indices), "the first head chose"),
    (check.one_choice, _by(lambda s, k: s[-1].topk(k).indices), "chose for all"),
    (check.one_choice, _by(lambda s, k: torch.arange(k)), "first pairs"),
    (
        check.one_choice,
        lambda s, k: ((s.topk(k).values.sum(1) / s.sum(1)).mean().item(), choice(s, k)[1]),
        "mean of shares",
    ),
]


@pytest.mark.parametrize("task", RIGHT, ids=lambda task: task.__name__)
def test_a_right_answer_passes(task, capsys):
    task(RIGHT[task])
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(("task", "function", "words"), WRONG)
def test_a_wrong_answer_is_told_why(task, function, words):
    with pytest.raises(NotYet, match=words):
        task(function)


@pytest.mark.parametrize("task", RIGHT, ids=lambda task: task.__name__)
def test_no_answer_is_no_crash(task):
    def empty(*_):
        raise NotImplementedError

    with pytest.raises(NotYet, match="no solution yet"):
        task(empty)
