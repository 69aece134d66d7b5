import matplotlib.pyplot as plt
import pytest

from modegpt.course.figures.fisher import task_accuracy


def test_each_method_is_a_line_in_percent():
    scores = {"FWSVD": [0.3, 0.5], "SVD": [0.25, 0.4]}
    (axes,) = task_accuracy([0.2, 0.45], scores, 0.6, 0.31).axes
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert {(30, 50), (25, 40), (60, 60), (31, 31)} == {tuple(map(round, line)) for line in drawn}
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [pytest.approx([20, 45])] * 2
    assert {text.get_text() for text in axes.texts} == {"FWSVD", "SVD", "whole model", "largest class"}
    plt.close("all")
