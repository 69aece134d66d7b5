import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.course.figures.nystrom import CURVES, error_against_tokens, scores_and_errors


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_scores_fall_the_cut_is_marked_and_every_curve_is_the_data_given():
    errors = {name: [0.5 / (i + 1), 0.1] for i, name in enumerate(CURVES)}
    left, right = scores_and_errors(torch.tensor([0.2, 0.9, 0.5]), 2, [1, 2], errors).axes
    assert left.lines[0].get_ydata() == pytest.approx([0.9, 0.5, 0.2])
    assert list(left.lines[1].get_xdata()) == [2, 2]
    assert {line.get_label() for line in right.lines} == set(errors) and len(right.lines) == len(errors)
    starts = [line.get_ydata()[0] for line in right.lines]
    assert starts == sorted(starts, reverse=True)
    for line in right.lines:
        values = errors[line.get_label()]
        assert list(line.get_xdata()) == [1, 2]
        assert line.get_ydata() == pytest.approx([100 * value for value in values])


def test_every_damping_has_a_panel_with_its_errors():
    curves = {"calibration": [0.1, 0.2], "held out": [0.9, 0.3], "no re-solve, held out": [0.4, 0.4]}
    panels = error_against_tokens([1024, 8192], {"undamped": curves, "damped": curves}).axes
    assert [panel.get_title("left") for panel in panels] == ["undamped", "damped"]
    for panel in panels:
        assert [list(line.get_ydata()) for line in panel.lines] == [
            pytest.approx([100 * value for value in values]) for values in curves.values()
        ]
        assert [label.get_text() for label in panel.get_xticklabels()] == ["1024", "8192"]
