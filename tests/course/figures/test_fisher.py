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


def test_the_words_touch_neither_each_other_nor_the_title():
    (axes,) = task_accuracy([0.1, 0.45], {"FWSVD": [0.3, 0.5], "SVD": [0.25, 0.495]}, 0.6, 0.31).axes
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.overlaps(other) for at, box in enumerate(boxes) for other in boxes[:at])
    assert all(box.y1 < axes.bbox.y1 for box in boxes)
    plt.close("all")
