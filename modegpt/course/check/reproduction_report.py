"""The checks of the report: a verdict that can fail, the questions a difference takes, rows beyond a tolerance."""

import math
from collections.abc import Callable

from modegpt.course.check.verdict import answer, expect, number, passed

VERDICTS = ("reproduced", "reproduced in shape", "not reproduced", "not testable here")


def verdict(function: Callable[[list[float], list[float], float, float, bool], str]) -> None:
    """Exercise 15.1: a verdict on "ours has a lower perplexity than the rival, by the share `claimed`".

    Args:
        function: (ours, rival, claimed, tolerance, same_model) -> one of VERDICTS; the lists hold a perplexity a draw.

    Raises:
        NotYet: a wrong verdict; the message names the case.
    """
    clear, noisy = ([40.0, 41.0, 42.0], [50.0, 51.0, 52.0]), ([40.0, 50.0, 60.0], [44.0, 52.0, 66.0])
    gain = 1 - 41 / 51
    cases = (  # ours, rival, claimed, tolerance, same model, the verdict, what it tries
        (*clear, gain, 0.01, True, 0, "the paper's model, a clear gain, within the tolerance"),
        (*clear, gain + 0.05, 0.01, True, 1, "the paper's model and a clear gain, but not of the paper's size"),
        (*clear, gain, 0.01, False, 1, "another model: at most in shape, however well the size agrees"),
        (*clear[::-1], gain, 0.01, True, 2, "the rival is ahead"),
        (*noisy, 0.074, 0.01, True, 2, "ahead by less than twice the standard error: the draws explain it"),
        ([], clear[1], gain, 0.01, True, 3, "no draws of ours"),
        (clear[0], [], gain, 0.01, True, 3, "no draws of the rival"),
        ([41.0], [51.0], gain, 0.01, True, 3, "one draw each: no error can be estimated"),
        (*clear, gain - 0.05, 0.01, True, 1, "a clear gain, larger than the paper's by more than the tolerance"),
        ([40.0, 41.0, 42.0], [43.0, 44.0, 45.0], 1 - 41 / 44, 0.01, True, 0, "ahead by 3.7 standard errors"),
        ([40.0, 42.0, 44.0], [43.0, 45.0, 47.0], 1 - 42 / 45, 0.01, True, 2, "ahead by 1.8 standard errors"),
    )
    for *given, right, what in cases:
        found = answer(function, *given)
        expect(found in VERDICTS, f"a verdict is one of {', '.join(VERDICTS)}, got {found!r}")
        expect(found == VERDICTS[right], f"{what}: this is '{VERDICTS[right]}', not '{found}'")
    passed("a rule that can fail, and says which of the four it is")


def questions_needed(function: Callable[[float, float], int]) -> None:
    """Exercise 15.2: how many questions make a difference of two accuracies twice its standard error.

    Args:
        function: (first, second) -> questions, for two models that are asked different questions, as many each.

    Raises:
        NotYet: a wrong number; names one error left out, a missing square, rounding down.
    """
    for first, second in ((0.46, 0.41), (0.62, 0.60), (0.3, 0.55), (0.51, 0.5)):
        found = number(answer(function, first, second), "the number of questions")
        both, gap = first * (1 - first) + second * (1 - second), first - second
        exact = 4 * both / gap**2
        mistakes = (
            (exact / 4, "that makes the difference one standard error, not two"),
            (exact / 2, "the standard error is to be doubled before it is squared"),
            (4 * first * (1 - first) / gap**2, "the second accuracy has an error, too: variances add up"),
            (4 * second * (1 - second) / gap**2, "the first accuracy has an error, too: variances add up"),
            (2 * both**0.5 / abs(gap), "that is the root of the number: errors shrink with the root of the count"),
            (4 * (first + second) / gap**2, "the variance of an answer is a (1 - a), not a"),
        )
        for mistake, message in mistakes:
            expect(abs(mistake - exact) < 2 or not mistake - 1 < found < mistake + 1, message)
        wanted = math.ceil(exact - 1e-9)
        expect(found != math.floor(exact) or found == wanted, "rounded down the difference is a little too small: up")
        expect(found == wanted, f"to tell {first:g} from {second:g} takes {wanted:,} questions, not {found:,.0f}")
    passed("a small difference takes thousands of questions")


def beyond(function: Callable[[dict[str, float], dict[str, float], float], list[str]]) -> None:
    """Exercise 15.3: the names of what two machines measured differently, the largest relative difference first.

    Args:
        function: (mine, theirs, tolerance) -> names that both have and whose values differ by more than `tolerance`,
            relative to theirs.

    Raises:
        NotYet: a wrong list; names rows that only one has, signs, the order, the base of the difference.
    """
    theirs = {"dense": 20.0, "10 %": 24.0, "30 %": 40.0, "50 %": 100.0, "only theirs": 5.0, "edge": 10.0}
    mine = {"50 %": 96.0, "only mine": 7.0, "30 %": 43.0, "10 %": 24.1, "dense": 20.0, "edge": 10.305}
    cases = (
        (mine, theirs, 0.03, ["30 %", "50 %", "edge"]),
        (mine, theirs, 0.05, ["30 %"]),
        ({}, theirs, 0.03, []),
        ({"a": 90.0, "b": 111.0}, {"a": 100.0, "b": 100.0}, 0.1, ["b"]),
        ({"a": 89.0, "b": 111.5}, {"a": 100.0, "b": 100.0}, 0.105, ["b", "a"]),
        ({"a": 110.5}, {"a": 100.0}, 0.1, ["a"]),
        ({"a": 90.5}, {"a": 100.0}, 0.1, []),
    )
    for given, other, tolerance, wanted in cases:
        found = answer(function, dict(given), dict(other), tolerance)
        expect(isinstance(found, list | tuple), f"return a list of names, got a {type(found).__name__}")
        found = list(found)
        extra = [name for name in found if name not in given or name not in other]
        expect(not extra, f"'{extra[0] if extra else ''}' is in one of the two only: there is nothing to compare")
        expect(
            set(found) == set(wanted),
            f"beyond {tolerance:g} are {wanted}, not {found}: take |mine - theirs| / theirs, both directions count",
        )
        expect(found == wanted, f"the largest difference comes first, whatever its sign: {wanted}, not {found}")
    passed("what a second machine has to explain, the worst first")
