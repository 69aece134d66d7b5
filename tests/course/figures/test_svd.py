"""The pictures of the value-output lesson hold the data they are given."""

import itertools

import matplotlib
import pytest
import torch

matplotlib.use("agg")

from modegpt.course.figures.svd import error_against_rank, singular_values_and_time


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_each_head_is_drawn_relative_to_its_largest_singular_value():
    values = torch.tensor([[4.0, 2.0, 1.0], [10.0, 5.0, 1.0]])
    left, _ = singular_values_and_time(values, [8, 16], [1.0, 8.0], [0.5, 1.0]).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[1.0, 0.5, 0.25], pytest.approx([1.0, 0.5, 0.1])]
    assert left.get_yscale() == "log"


def test_both_routes_are_drawn_with_their_seconds_and_the_last_ratio():
    _, right = singular_values_and_time(torch.ones(2, 3), [8, 16], [1.0, 8.0], [0.5, 2.0]).axes
    paper, shortcut = right.lines[:2]
    assert list(paper.get_ydata()) == [1.0, 8.0]
    assert list(shortcut.get_ydata()) == [0.5, 2.0]
    assert list(paper.get_xdata()) == [8, 16]
    assert {text.get_text() for text in right.texts} == {"paper's route", "shortcut", "4 times"}


def test_no_words_lie_on_one_another():
    figure = singular_values_and_time(torch.ones(3, 64), [576, 1024, 2048], [0.11, 0.63, 4.5], [0.008, 0.022, 0.1])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_errors_are_drawn_in_percent_and_labelled():
    (axes,) = error_against_rank([1, 2], {"a": [0.5, 0.25], "b": [0.75, 0.125]}, "title", 4).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[50, 25], [75, 12.5]]
    assert {text.get_text() for text in axes.texts} == {"a", "b"}
    assert axes.get_xlim()[1] == 4
