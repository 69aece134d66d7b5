import re

import pytest
import torch

from modegpt.check import NotYet
from modegpt.check import measuring as check


def strided(losses_of, ids, length, stride):
    parts, done = [], 1
    for start in range(0, len(ids), stride):
        end = min(start + length, len(ids))
        parts.append(losses_of(ids[start:end])[done - end :])
        done = end
        if end == len(ids):
            return torch.cat(parts)


def _last_window_first(losses_of, ids, length, stride):
    """Written over by every earlier window that holds the token."""
    starts = [s for s in range(0, len(ids) - 1, stride) if s == 0 or s + length - stride < len(ids)]
    found = torch.zeros(len(ids), dtype=torch.float64)
    for start in reversed(starts):
        found[start + 1 : start + length] = losses_of(ids[start : start + length])
    return found[1:]


def _every_window_whole(losses_of, ids, length, stride):
    starts = range(0, max(1, len(ids) - length + stride), stride)
    return torch.cat([losses_of(ids[s : s + length]) for s in starts])


def _no_overlap(losses_of, ids, length, stride):
    return torch.cat([losses_of(ids[s : s + length]) for s in range(0, len(ids) - 1, length)])


def _no_overlap_but_for_one(losses_of, ids, length, stride):
    return strided(losses_of, ids, length, length - 1)


def _latest_window(losses_of, ids, length, stride):
    found = torch.zeros(len(ids), dtype=torch.float64)
    for start in range(0, len(ids) - 1, stride):
        found[start + 1 : start + length] = losses_of(ids[start : start + length])
    return found[1:]


def _full_windows_only(losses_of, ids, length, stride):
    return strided(losses_of, ids[: (len(ids) - length) // stride * stride + length], length, stride)


def _one_too_few(losses_of, ids, length, stride):
    parts, done = [losses_of(ids[:length])], min(length, len(ids))
    for start in range(stride, len(ids), stride):
        end = min(start + length, len(ids))
        if end > done + 1:
            parts.append(losses_of(ids[start:end])[done + 1 - end :])
        done = max(done, end)
    return torch.cat(parts)


def _full_context(losses_of, ids, length, stride):
    return strided(losses_of, ids, length, 1)


def difference(first, second, *, pair=lambda a, b, axis: (b - a).mean(axis), over=None):
    delta = second - first
    errors = [x.std() / len(x) ** 0.5 for x in (pair(first, second, 0), pair(first, second, 1))]
    return delta.mean(), *errors


def _unpaired(first, second):
    errors = [((first.mean(a).var() + second.mean(a).var()) / first.shape[1 - a]).sqrt() for a in (0, 1)]
    return (second - first).mean(), *errors


def _errors(of):
    """The right difference with errors made of its means over the other axis."""

    def function(first, second):
        delta = second - first
        return delta.mean(), of(delta.mean(0), delta), of(delta.mean(1), delta)

    return function


def _all_entries(first, second):
    delta = second - first
    return delta.mean(), *[delta.std() / delta.numel() ** 0.5] * 2


def _spread_first(first, second):
    delta = second - first
    return delta.mean(), *[delta.std(a).mean() / delta.shape[1 - a] ** 0.5 for a in (0, 1)]


def runs(text, words, lower=True, pattern=r"\w+", lines=True):
    found = []
    for line in text.split("\n") if lines else [text]:
        part = re.findall(pattern, line.lower() if lower else line)
        found += [tuple(part[i : i + words]) for i in range(len(part) - words + 1)]
    return found


def share(calibration, evaluation, words, **options):
    known, asked = (runs(text, words, **options) for text in (calibration, evaluation))
    return sum(run in set(known) for run in asked) / len(asked) if asked else 0


def _distinct(calibration, evaluation, words):
    known, asked = set(runs(calibration, words)), set(runs(evaluation, words))
    return len(known & asked) / max(1, len(asked))


def _of_the_calibration(calibration, evaluation, words):
    known, asked = runs(calibration, words), runs(evaluation, words)
    return sum(run in known for run in asked) / len(known)


def kept(dense, small, guessing, questions, *, less=1, error=None):
    above = (dense - guessing).mean()
    share = (small - guessing).mean() / above
    a, b = ((x * (1 - x) / (questions - less)).sum().sqrt() / len(x) for x in (small, dense))
    return share, (a**2 + share**2 * b**2).sqrt() / above if error is None else error(a, b, share, above, len(dense))


def _wrong_share(part):
    return lambda *given: (part(*given), kept(*given)[1])


def _wrong_error(part):
    return lambda *given: kept(*given, error=part)


def _pooled(dense, small, guessing, questions):
    share, above = kept(dense, small, guessing, questions)[0], (dense - guessing).mean()
    a, b = ((x.mean() * (1 - x.mean()) / questions.sum()).sqrt() for x in (small, dense))
    return share, (a**2 + share**2 * b**2).sqrt() / above


def _unfinished(*_):
    raise NotImplementedError


RIGHT = [
    (check.strided_losses, strided),
    (check.strided_losses, _last_window_first),
    (check.strided_losses, lambda *given: strided(*given).float()),
    (check.difference, difference),
    (check.difference, lambda *given: [value.item() for value in difference(*given)]),
    (check.shared_share, share),
    (check.shared_share, lambda *given: torch.tensor(float(share(*given)))),
    (check.kept_above_guessing, kept),
    (check.kept_above_guessing, lambda *given: kept(*given, less=0)),  # nobody can tell at so many questions
]
WRONG = [
    (check.strided_losses, _every_window_whole, "tokens count twice"),
    (check.strided_losses, _no_overlap, "begins a window is predicted in the one before"),
    (check.strided_losses, _no_overlap_but_for_one, "an earlier window"),
    (check.strided_losses, _latest_window, "an earlier window"),
    (check.strided_losses, _full_windows_only, "last window may be shorter"),
    (check.strided_losses, _one_too_few, "begins a window is predicted in the one before"),
    (check.strided_losses, _full_context, "windows start at 0, 4, 8"),
    (check.strided_losses, lambda f, ids, n, s: f(ids), "a window had 23 tokens"),
    (check.strided_losses, lambda *given: strided(*given).flip(0), "not in the order|predicted in the one before"),
    (check.strided_losses, lambda *given: strided(*given) / 2, "just as losses_of gave them"),
    (check.strided_losses, lambda *given: strided(*given).mean(), "one tensor of losses"),
    (check.strided_losses, lambda *given: strided(*given).tolist(), "one tensor of losses"),
    (check.difference, lambda a, b: difference(b, a), "turned around"),
    (check.difference, lambda a, b: ((b - a).sum(0).mean(), *difference(a, b)[1:]), "not a mean"),
    (check.difference, lambda a, b: (2 * (b - a).mean(), *difference(a, b)[1:]), "mean difference of this case"),
    (check.difference, _unpaired, "two separate samples"),
    (check.difference, _all_entries, "no 36 independent ones"),
    (check.difference, _spread_first, "over the other axis first, then the spread"),
    (check.difference, _errors(lambda x, delta: x.std()), "spread of single windows"),
    (check.difference, _errors(lambda x, delta: x.var() / len(x)), "root is missing"),
    (check.difference, _errors(lambda x, delta: x.std(correction=0) / len(x) ** 0.5), "by 8, not by 9"),
    (check.difference, _errors(lambda x, delta: x.std() / delta.numel() ** 0.5), "9 windows, not 36"),
    (check.difference, _errors(lambda x, delta: 3 * x.std()), "error over windows of this case"),
    (check.difference, lambda a, b: (difference(a, b)[0], *difference(a, b)[:0:-1]), "swapped"),
    (check.difference, lambda a, b: difference(a, b)[:2], "three numbers"),
    (check.shared_share, lambda *given: share(*given, lower=False), "lower case"),
    (check.shared_share, lambda *given: share(*given, pattern=r"\S+"), "without punctuation"),
    (check.shared_share, lambda *given: share(*given, lines=False), "next line"),
    (check.shared_share, _distinct, "also those that come again"),
    (check.shared_share, lambda a, b, n: share(b, a, n), "how much of the"),
    (check.shared_share, _of_the_calibration, "not of the other"),
    (check.shared_share, lambda a, b, n: share(a, b, n - 1), "too short"),
    (check.shared_share, lambda a, b, n: share(a, b, n + 1), "too long"),
    (check.shared_share, lambda a, b, n: share(a, b, 1), "single words"),
    (check.shared_share, lambda a, b, n: share(a, b, n) * len(runs(b, n)), "a number of runs"),
    (check.shared_share, lambda *given: 100 * share(*given), "between 0 and 1"),
    (check.shared_share, lambda a, b, n: sum(r in runs(a, n) for r in runs(b, n)) / len(runs(b, n)), "ZeroDivision"),
    (check.shared_share, lambda a, b, n: share(a, b, n) or float(n == 13), "return 0"),
    (check.shared_share, lambda *given: 0.0, "the share is"),
    (check.kept_above_guessing, _wrong_share(lambda d, s, g, n: s.mean() / d.mean()), "plain retention"),
    (check.kept_above_guessing, _wrong_share(lambda d, s, g, n: ((s - g) / (d - g)).mean()), "mean of the tasks' shares"),
    (check.kept_above_guessing, _wrong_share(lambda d, s, g, n: (s - g).mean() / d.mean()), "from the dense model, too|dense"),
    (check.kept_above_guessing, _wrong_share(lambda d, s, g, n: s.mean() / (d - g).mean()), "small model, too"),
    (check.kept_above_guessing, _wrong_share(lambda d, s, g, n: (s - g).mean()), "of how much"),
    (check.kept_above_guessing, _wrong_share(lambda *given: 1 - kept(*given)[0]), "share lost"),
    (check.kept_above_guessing, _wrong_share(lambda *given: 1 / kept(*given)[0]), "turned around"),
    (
        check.kept_above_guessing,
        _wrong_share(lambda d, s, g, n: ((s - g) * n).sum() / ((d - g) * n).sum()),
        "every task counts the same",
    ),
    (
        check.kept_above_guessing,
        _wrong_share(lambda d, s, g, n: (s.mean() - 0.5) / (d.mean() - 0.5)),
        "differ in their guessing level",
    ),
    (check.kept_above_guessing, _wrong_share(lambda *given: 2 * kept(*given)[0]), "the share kept of this case"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: a / level), "has an error as well"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: (a**2 + b**2) ** 0.5 / level), "quotient"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: (a**2 + b**2) ** 0.5), "difference of the two"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: (a + k * b) / level), "add in squares"),
    (
        check.kept_above_guessing,
        _wrong_error(lambda a, b, k, level, T: (a**2 + k**2 * b**2) / level**2),
        "root is missing",
    ),
    (
        check.kept_above_guessing,
        _wrong_error(lambda a, b, k, level, T: T**0.5 * (a**2 + k**2 * b**2) ** 0.5 / level),
        "divided by T",
    ),
    (
        check.kept_above_guessing,
        _wrong_error(lambda a, b, k, level, T: T * (a**2 + k**2 * b**2) ** 0.5 / level),
        "divide by their number",
    ),
    (check.kept_above_guessing, _pooled, "pools the questions"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: 3 * a), "standard error of this case"),
    (check.kept_above_guessing, lambda *given: kept(*given)[0], "two numbers"),
]


@pytest.mark.parametrize(("verify", "solution"), RIGHT)
def test_right_answers_pass(verify, solution, capsys):
    verify(solution)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(("verify", "solution", "message"), WRONG)
def test_wrong_answers_are_rejected_with_the_likely_mistake(verify, solution, message):
    with pytest.raises(NotYet, match=message):
        verify(solution)


@pytest.mark.parametrize(
    "verify", [check.strided_losses, check.difference, check.shared_share, check.kept_above_guessing]
)
def test_an_unfinished_function_is_named(verify):
    with pytest.raises(NotYet, match="_unfinished has no solution yet"):
        verify(_unfinished)
