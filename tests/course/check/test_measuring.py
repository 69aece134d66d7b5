import math
import re

import torch
from answers import Answers

from modegpt.course.check import measuring as check


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


def _into_a_row_of_zeros(losses_of, ids, length, stride):
    found = torch.zeros(len(ids) - 1, dtype=torch.float64)
    for start in reversed(range(0, len(ids) - length + 1, stride)):
        found[start : start + length - 1] = losses_of(ids[start : start + length])
    return found


def _a_zero_for_the_first(*given):
    return torch.cat([torch.zeros(1, dtype=torch.float64), strided(*given)])


def _windows_at_the_end(losses_of, ids, length, stride):
    """The last window is moved back until it is whole."""
    parts, done = [losses_of(ids[:length])], min(length, len(ids))
    while done < len(ids):
        end = min(done + stride, len(ids))
        parts.append(losses_of(ids[end - length : end])[done - end :])
        done = end
    return torch.cat(parts)


def bits(first, second, sizes, *, error=None):
    delta, n, total = (second - first) / math.log(2), len(sizes), sizes.sum()
    rate = delta.sum() / total
    rest = delta - rate * sizes
    return rate, (n / (n - 1) * rest.square().sum()).sqrt() / total if error is None else error(delta, sizes, rate)


def _wrong_rate(part):
    return lambda *given: (part(*given), bits(*given)[1])


def _wrong_bits_error(part):
    return lambda *given: bits(*given, error=part)


def _unpaired(first, second, sizes):
    zero = torch.zeros_like(first)
    errors = [bits(zero, x, sizes)[1] for x in (first, second)]
    return bits(first, second, sizes)[0], math.hypot(*errors)


def runs(text, words, lower=True, pattern=r"\w+", lines=True, more=0):
    found = []
    for line in text.split("\n") if lines else [text]:
        part = re.findall(pattern, line.lower() if lower else line)
        found += [tuple(part[i : i + words]) for i in range(len(part) - words + 1 + more)]
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


def _lines_of_the_evaluation_alone(calibration, evaluation, words):
    known, asked = runs(calibration, words, lines=False), runs(evaluation, words)
    return sum(run in known for run in asked) / max(1, len(asked))


def _as_text(calibration, evaluation, words):
    lines = [" ".join(re.findall(r"\w+", line.lower())) for line in calibration.split("\n")]
    asked = runs(evaluation, words)
    return sum(any(" ".join(run) in line for line in lines) for run in asked) / max(1, len(asked))


def _of_both(calibration, evaluation, words):
    known, asked = set(runs(calibration, words)), set(runs(evaluation, words))
    return len(known & asked) / max(1, len(known | asked))


def _one_after_the_other(calibration, evaluation, words):
    known, asked = runs(calibration, words), runs(evaluation, words)[::words]
    return sum(run in known for run in asked) / max(1, len(asked))


def _mean_of_lines(calibration, evaluation, words):
    shares = [share(calibration, line, words) for line in evaluation.split("\n") if runs(line, words)]
    return sum(shares) / max(1, len(shares))


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


def _variance_above_guessing(dense, small, guessing, questions):
    share, above = kept(dense, small, guessing, questions)[0], (dense - guessing).mean()
    a, b = (kept(x - guessing, 0 * x, 0 * x, questions, error=lambda a, b, *_: b) for x in (small, dense))
    return share, (a[1] ** 2 + share**2 * b[1] ** 2).sqrt() / above


def _in_relative_errors(dense, small, guessing, questions):
    share, error = kept(dense, small, guessing, questions)
    return share, error * share.sign()


RIGHT = [
    (check.strided_losses, strided),
    (check.strided_losses, _last_window_first),
    (check.strided_losses, lambda *given: strided(*given).float()),
    (check.bits_per_byte, bits),
    (check.bits_per_byte, lambda *given: [value.item() for value in bits(*given)]),
    (check.bits_per_byte, lambda *given: bits(*(tensor.float() for tensor in given))),
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
    (check.strided_losses, _into_a_row_of_zeros, "last window may be shorter"),
    (check.strided_losses, _a_zero_for_the_first, "nothing predicts the first"),
    (check.strided_losses, _windows_at_the_end, "windows start at 0, 4, 8"),
    (check.strided_losses, lambda f, ids, n, s: f(ids), "a window had 23 tokens"),
    (check.strided_losses, lambda *given: strided(*given).flip(0), "not in the order|predicted in the one before"),
    (check.strided_losses, lambda *given: strided(*given) / 2, "just as losses_of gave them"),
    (check.strided_losses, lambda *given: strided(*given).mean(), "one tensor of losses"),
    (check.strided_losses, lambda *given: strided(*given).tolist(), "one tensor of losses"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: (b - a).sum() / n.sum()), "in nats"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: (b - a).sum() / n.sum() * math.log(2)), "multiplies by"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: bits(b, a, n)[0]), "turned around"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: ((b - a) / n).mean() / math.log(2)), "all bits over all bytes"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: (b - a).mean() / math.log(2)), "per document"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: b.sum() / a.sum()), "that is a ratio"),
    (check.bits_per_byte, _wrong_rate(lambda a, b, n: b.sum() / n.sum() / math.log(2)), "second model alone"),
    (check.bits_per_byte, _wrong_rate(lambda *given: 2 * bits(*given)[0]), "the difference of this case"),
    (check.bits_per_byte, lambda *given: (bits(*given)[0], bits(*given)[1] * math.log(2)), "error is in nats"),
    (check.bits_per_byte, _unpaired, "two separate samples"),
    (check.bits_per_byte, _wrong_bits_error(lambda d, n, r: d.std() * len(d) ** 0.5 / n.sum()), "because it is long"),
    (check.bits_per_byte, _wrong_bits_error(lambda d, n, r: (d / n).std() / len(d) ** 0.5), "own rates"),
    (
        check.bits_per_byte,
        _wrong_bits_error(lambda d, n, r: (d - r * n).square().sum().sqrt() / n.sum()),
        "divide the squares by 5",
    ),
    (check.bits_per_byte, lambda *given: (bits(*given)[0], bits(*given)[1] * len(given[0]) ** 0.5), "single documents"),
    (check.bits_per_byte, lambda *given: (bits(*given)[0], bits(*given)[1] ** 2), "root is missing"),
    (check.bits_per_byte, lambda *given: (bits(*given)[0], bits(*given)[1] * given[2].sum()), "bits in all"),
    (check.bits_per_byte, lambda *given: (bits(*given)[0], 3 * bits(*given)[1]), "standard error of this case"),
    (check.bits_per_byte, lambda *given: bits(*given)[0], "two numbers"),
    (check.shared_share, lambda *given: share(*given, lower=False), "lower case"),
    (check.shared_share, lambda *given: share(*given, pattern=r"\S+"), "without punctuation"),
    (check.shared_share, lambda *given: share(*given, lines=False), "next line"),
    (check.shared_share, _lines_of_the_evaluation_alone, "the calibration text neither"),
    (check.shared_share, lambda *given: share(*given, pattern="[a-z]+"), "digits and letters with accents"),
    (check.shared_share, lambda *given: share(*given, pattern="[a-z0-9]+"), "digits and letters with accents"),
    (check.shared_share, _as_text, "compared whole"),
    (check.shared_share, lambda a, b, n: share(a, b, n, more=n - 1), "too few for a run"),
    (check.shared_share, lambda a, b, n: share(a, b, n, more=-1), "last run of a line is missing"),
    (check.shared_share, _of_both, "of the evaluation alone"),
    (check.shared_share, _one_after_the_other, "begins with every word"),
    (check.shared_share, _mean_of_lines, "mean of the lines' shares"),
    (check.shared_share, lambda a, b, n: share(a, b, 13), "the share is"),
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
    (
        check.kept_above_guessing,
        _wrong_share(lambda d, s, g, n: ((s - g) / (d - g)).mean()),
        "mean of the tasks",
    ),
    (
        check.kept_above_guessing,
        _wrong_share(lambda d, s, g, n: (s - g).mean() / d.mean()),
        "dense model, too",
    ),
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
    (
        check.kept_above_guessing,
        _wrong_share(lambda d, s, g, n: (s - g).clamp(min=0).mean() / (d - g).mean()),
        "counts as it is, below zero",
    ),
    (check.kept_above_guessing, _wrong_share(lambda *given: 2 * kept(*given)[0]), "the share kept of this case"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: a / level), "has an error as well"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: (a**2 + b**2) ** 0.5 / level), "quotient"),
    (
        check.kept_above_guessing,
        _wrong_error(lambda a, b, k, level, T: (a**2 + b**2) ** 0.5),
        "a difference of the means",
    ),
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
    (
        check.kept_above_guessing,
        _wrong_error(lambda a, b, k, level, T: (a**2 + k.abs() * b**2) ** 0.5 / level),
        "the share is squared",
    ),
    (check.kept_above_guessing, _variance_above_guessing, "for the share alone"),
    (check.kept_above_guessing, _in_relative_errors, "not negative"),
    (check.kept_above_guessing, _pooled, "pools the questions"),
    (check.kept_above_guessing, _wrong_error(lambda a, b, k, level, T: 3 * a), "standard error of this case"),
    (check.kept_above_guessing, lambda *given: kept(*given)[0], "two numbers"),
]


class TestAnswers(Answers):
    right, wrong = RIGHT, WRONG
