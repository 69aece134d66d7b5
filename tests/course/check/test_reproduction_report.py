"""The checks of the report accept right answers and name the wrong ones."""

import math
from statistics import mean, stdev, variance

import pytest

from modegpt.course.check import NotYet
from modegpt.course.check import reproduction_report as check


def unfinished(*arguments):
    raise NotImplementedError


@pytest.mark.parametrize("function", [check.verdict, check.questions_needed, check.beyond])
def test_an_unfinished_function_is_told_so(function):
    with pytest.raises(NotYet, match="no solution yet"):
        function(unfinished)


def verdict(ours, rival, claimed, tolerance, same_model, least=2, factor=2.0, size=abs, any_model=False):
    if min(len(ours), len(rival)) < least:
        return "not testable here"
    error = math.sqrt(sum(variance(x) / len(x) for x in (ours, rival) if len(x) > 1))
    if mean(rival) - mean(ours) <= factor * error:
        return "not reproduced"
    same = size(1 - mean(ours) / mean(rival) - claimed) <= tolerance and (same_model or any_model)
    return "reproduced" if same else "reproduced in shape"


def test_right_answers_pass(capsys):
    check.verdict(verdict)
    check.questions_needed(lambda a, b: math.ceil(4 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2))

    def beyond(mine, theirs, tolerance):
        off = {n: abs(mine[n] - theirs[n]) / theirs[n] for n in mine.keys() & theirs.keys()}
        return sorted((n for n, size in off.items() if size > tolerance), key=lambda n: -off[n])

    check.beyond(beyond)
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *given: verdict(*given, any_model=True), "another model"),
        (lambda *given: verdict(*given, factor=0.0), "the draws explain it"),
        (lambda *given: verdict(*given, factor=1.0), "1.8 standard errors"),
        (lambda *given: verdict(*given, factor=4.0), "3.7 standard errors"),
        (lambda *given: verdict(*given, least=1), "one draw each"),
        (lambda *given: verdict(*given, size=lambda x: -x), "larger than the paper's"),
        (lambda *given: verdict(*given, size=lambda x: 0), "not of the paper's size"),
        (lambda *given: "reproduced", "another|size|ahead"),
        (lambda *given: "fine", "one of"),
        (lambda ours, rival, *rest: verdict(rival, ours, *rest), "not reproduced"),
    ],
)
def test_wrong_verdicts_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.verdict(wrong)


def needed(a, b, times=4.0, whole=math.ceil):
    return whole(times * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: needed(a, b, 1), "one standard error"),
        (lambda a, b: needed(a, b, 2), "doubled before"),
        (lambda a, b: needed(a, b, whole=math.floor), "rounded down"),
        (lambda a, b: math.ceil(4 * a * (1 - a) / (a - b) ** 2), "the second accuracy"),
        (lambda a, b: math.ceil(4 * b * (1 - b) / (a - b) ** 2), "the first accuracy"),
        (lambda a, b: math.ceil(2 * (a * (1 - a) + b * (1 - b)) ** 0.5 / abs(a - b)), "root of the number"),
        (lambda a, b: math.ceil(4 * (a + b) / (a - b) ** 2), "not a"),
        (lambda a, b: 10_000, "takes"),
    ],
)
def test_wrong_counts_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.questions_needed(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, t, e: sorted({*m, *t}), "one of the two only"),
        (lambda m, t, e: [n for n in m if n in t and m[n] / t[n] - 1 > e], "both directions"),
        (lambda m, t, e: [n for n in m if n in t and abs(m[n] / t[n] - 1) > e], "largest difference"),
        (lambda m, t, e: [n for n in m if n in t and abs(m[n] - t[n]) > e], "relative|beyond"),
        (lambda m, t, e: sorted((n for n in m if n in t and abs(t[n] / m[n] - 1) > e),
                                key=lambda n: -abs(t[n] / m[n] - 1)), "theirs"),
        (lambda m, t, e: len(m), "list of names"),
    ],
)  # fmt: skip
def test_wrong_lists_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.beyond(wrong)


def test_the_cases_of_the_verdict_mean_what_they_say():
    for ours, rival, errors in (([40.0, 41, 42], [43.0, 44, 45], 3.7), ([40.0, 42, 44], [43.0, 45, 47], 1.8)):
        error = math.sqrt(stdev(ours) ** 2 / 3 + stdev(rival) ** 2 / 3)
        assert round((mean(rival) - mean(ours)) / error, 1) == errors
