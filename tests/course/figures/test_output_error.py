import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.course.figures.output_error import CURVES, anisotropy, error_against_share, error_against_tokens


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_spectrum_and_power_are_drawn_over_their_mean_and_the_loudest_dims_are_named():
    spectrum, power = torch.tensor([8.0, 3.0, 0.5, 0.5]), torch.tensor([1.0, 7.0, 2.0, 2.0])
    left, right = anisotropy(spectrum, power).axes
    assert left.lines[0].get_ydata() == pytest.approx([8 / 3, 1, 1 / 6, 1 / 6])
    assert right.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([1 / 3, 7 / 3, 2 / 3, 2 / 3])
    assert right.get_yscale() == left.get_yscale() == "log"
    assert "dim 1" in [text.get_text() for text in right.texts]


def test_both_errors_are_drawn_against_the_tokens():
    (axes,) = error_against_tokens([64, 128, 256], [0.0, 0.1, 0.2], [0.5, 0.4, 0.3], 100).axes
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.4, 0.3]
    assert axes.lines[1].get_ydata().tolist() == [0.0, 0.1, 0.2]
    assert axes.lines[0].get_xdata().tolist() == [64, 128, 256]
    assert any("100 inputs" in text.get_text() for text in axes.texts)


def test_every_method_gets_its_line_in_its_panel():
    before = {"whitened W_V": [0.8, 0.4], "joint": [0.7, 0.3]}
    after = {method: [0.9, i / 10] for i, method in enumerate(CURVES)}
    panels = error_against_share([0.25, 0.75], before, after).axes
    for axes, errors in zip(panels, (before, after), strict=True):
        assert {line.get_label(): line.get_ydata().tolist() for line in axes.lines} == errors
        assert axes.lines[0].get_xdata().tolist() == [25, 75]
