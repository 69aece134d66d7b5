import matplotlib.pyplot as plt
import pytest

from modegpt.course.figures import llama_on_a_gpu as figures
from modegpt.study.results import Row


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def row(ratio, value, seconds=0.01, cost=1e12, **details):
    about = {"batch": 4, "tokens": 2048, "mode": "eager", "seconds": seconds, "flops": cost, "bytes": cost} | details
    return Row(what="prefill", value=value, unit="tokens/s", model="7b", method="x", ratio=ratio, details=about)


def test_memory_is_stacked_in_gib_beside_the_card_and_the_peak():
    parts = {"7b": {"weights": 2**31, "hidden": 2**30}, "13b": {"weights": 2**32}}
    (axes,) = figures.stacked_memory(parts, 2**33, {"7b": 3.5 * 2**30}).axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 2), (2, 1), (0, 4)]
    peak, card = axes.lines
    assert (list(peak.get_xdata()), list(peak.get_ydata())) == ([3.5], [0])
    assert set(card.get_xdata()) == {8}
    assert [text.get_text() for text in axes.texts] == ["a card of 9 GB"]  # 2**33 bytes
    assert axes.patches[0].get_facecolor() == axes.patches[2].get_facecolor() != axes.patches[1].get_facecolor()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["measured peak", "weights", "hidden"]


def test_a_step_shows_what_it_took_and_what_it_needs():
    (axes,) = figures.needed_and_measured({"a": (0.2, 0.8), "b": (0.1, 0.2)}, "7b").axes
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.2]
    assert [line.get_xdata()[0] for line in axes.lines[:2]] == [0.2, 0.1]
    assert [text.get_text().strip() for text in axes.texts] == ["25% of the peak", "50% of the peak"]


def test_the_line_goes_through_the_points_of_a_mode():
    assert figures.line_through([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2))
    rows = [row(0.0, 1.0, seconds=0.011, cost=4e9), row(0.5, 1.0, seconds=0.007, cost=2e9)]
    (axes,) = figures.time_against_cost({"Decoding": ("bytes", 1e9, {"graph": rows})}).axes
    points, line = axes.lines
    assert list(points.get_xdata()) == [4, 2] and points.get_ydata() == pytest.approx([11, 7])
    assert list(line.get_xdata()) == [0, 4] and line.get_ydata() == pytest.approx([3, 11])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("GB read", "ms of one run")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["graph: 3.0"]


def test_speeds_stand_beside_the_steps_and_below_what_is_allowed():
    rows = [row(0.0, 100.0), row(0.5, 150.0, allowed=1.9)]
    left, prefill, decode = figures.split_and_speed({"7b": {"a": 3.0, "b": 2.0}}, {"prefill": rows, "decode": []}).axes
    assert [(bar.get_x(), bar.get_width()) for bar in left.patches] == [(0, 3), (3, 2)]
    assert [text.get_text().strip() for text in left.texts] == ["5 s"]
    allowed, measured = prefill.lines[:2]
    assert list(allowed.get_xdata()) == [0, 50] and allowed.get_ydata() == pytest.approx([100, 190])
    assert list(measured.get_ydata()) == [100, 150]
    assert prefill.get_title(loc="left") == "Prefill 4 x 2,048, eager" and decode.get_title(loc="left") == "Decode"
    assert [text.get_text() for text in decode.texts] == ["not timed"] and not decode.lines


def test_what_was_not_timed_says_so():
    (axes,) = figures.time_against_cost({"Prefill": ("flops", 1e12, {})}).axes
    assert [text.get_text() for text in axes.texts] == ["not timed"] and axes.get_legend() is None


def test_scaling_draws_the_seconds_and_a_perfect_split():
    (axes,) = figures.scaling({"llama-2-7b": {1: 24.0, 2: 13.0, 4: 7.0}}).axes
    measured, perfect, _ = axes.lines
    assert list(measured.get_xdata()) == [1, 2, 4] and list(measured.get_ydata()) == [24, 13, 7]
    assert list(perfect.get_ydata()) == [24, 12, 6]
