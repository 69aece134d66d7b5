import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.course.figures import cr


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(axes):
    return [list(line.get_ydata()) for line in axes.lines]


def test_errors_and_bounds_are_drawn_as_given():
    lines = {"exact": [0.2, 0.1, 0.01], "norm": [3.0, 1.0, 0.2], "trace": [30.0, 20.0, 5.0]}
    (axes,) = cr.error_and_bounds([4, 8, 12], lines).axes
    assert drawn(axes)[:3] == list(lines.values())
    assert {text.get_text().strip() for text in axes.texts} >= set(lines)


def test_a_change_that_is_rounding_is_called_zero():
    (axes,) = cr.change_under_shift([1, 10, 100], {"half": [1e-6, 1e-3, 0.1], "pairs": [0.0, 1e-30, 1e-29]}).axes
    assert drawn(axes) == [[1e-6, 1e-3, 0.1], [1e-12] * 3]
    assert [text.get_text() for text in axes.texts] == ["half", "pairs: below 1e-12, rounding"]


def test_kept_pairs_and_curves_are_drawn_as_given():
    scores = {"layer 1": torch.rand(2, 8) + 0.1, "layer 2": torch.rand(2, 8) + 0.1}
    kept = {"layer 1": torch.tensor([[0, 3], [1, 2]]), "layer 2": torch.tensor([[4, 5], [6, 7]])}
    curves = {"joint": {4: 0.3, 8: 0.1}, "random": {4: 0.9, 8: 0.5}}
    left, right = cr.kept_pairs_and_error(scores, kept, 3, curves).axes
    marks = left.lines[0]
    assert list(zip(*marks.get_data(), strict=True)) == [(0, 0), (3, 0), (1, 1), (2, 1), (4, 2), (5, 2), (6, 3), (7, 3)]
    assert left.images[0].get_array().shape == (4, 8)
    assert drawn(right) == [[0.3, 0.1], [0.9, 0.5]]
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(curves)
