"""The checks of the lesson on GPUs accept right answers and name the wrong ones."""

import pytest

from modegpt.course.check import NotYet
from modegpt.course.check import llama_on_a_gpu as check


def unfinished(*arguments):
    raise NotImplementedError


@pytest.mark.parametrize("function", [check.cache_bytes, check.speed_up, check.batch_that_computes])
def test_an_unfinished_function_is_told_so(function):
    with pytest.raises(NotYet, match="no solution yet"):
        function(unfinished)


def test_right_answers_pass(capsys):
    check.cache_bytes(lambda q, v, h, t, s: sum((a + b) * h for a, b in zip(q, v, strict=True)) * t * s)
    check.speed_up(lambda d, s, f: d / (f * d + (1 - f) * s))
    check.batch_that_computes(lambda p, b, s: (s / b) / (2 / p))
    assert capsys.readouterr().out.count("Right: ") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, v, h, t, s: 2 * sum(q) * h * t * s, "ranks of their own"),
        (lambda q, v, h, t, s: 2 * sum(q + v) * h * t * s, "once too often"),
        (lambda q, v, h, t, s: (q[0] + v[0]) * h * t * s, "first layer"),
        (lambda q, v, h, t, s: sum(q + v) * t * s, "one head"),
        (lambda q, v, h, t, s: sum(q + v) * h * t, "not bytes"),
        (lambda q, v, h, t, s: sum(q + v) * h * s, "one token"),
        (lambda q, v, h, t, s: sum(q) * h * t * s, "values are cached"),
        (lambda q, v, h, t, s: sum(v) * h * t * s, "keys are cached"),
        (lambda q, v, h, t, s: "many", "one number"),
        (lambda q, v, h, t, s: q.pop() or 1, "take"),
    ],
)
def test_wrong_caches_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.cache_bytes(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d, s, f: d / s, "that is the bound"),
        (lambda d, s, f: f + (1 - f) * s / d, "time left"),
        (lambda d, s, f: 1 / (f + s / d), "only the rest"),
        (lambda d, s, f: 1 / ((1 - f) * s / d), "missing"),
        (lambda d, s, f: f + (1 - f) * d / s, "times add up"),
        (lambda d, s, f: 1 / (1 - f + f * s / d), "wrong part"),
        (lambda d, s, f: 1.0, "it is"),
    ],
)
def test_wrong_speed_ups_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.speed_up(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, b, s: p * s / b, "two operations"),
        (lambda p, b, s: p / (2 * b), "bytes to be read"),
        (lambda p, b, s: p / b, "operations a byte"),
        (lambda p, b, s: 2 * b / (p * s), "upside down"),
        (lambda p, b, s: 2 * p * s / b, "belong to the computing"),
        (lambda p, b, s: p / (2 * b * s), "longer to read"),
        (lambda p, b, s: 100.0, "it is"),
    ],
)
def test_wrong_batches_are_named(wrong, message):
    with pytest.raises(NotYet, match=message):
        check.batch_that_computes(wrong)
