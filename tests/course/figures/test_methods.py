from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.course.figures import methods as baselines
from modegpt.study.results import load

RESULTS = Path(__file__).resolve().parents[3] / "figures" / "results"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_weights_and_power_are_drawn_over_their_means_where_an_input_lives():
    power = torch.tensor([0.0, 1.0, 2.0, 3.0])
    figure = baselines.weights_against_power(power, {"a": torch.tensor([1.0, 0, 2, 5]), "b": power})
    left, right = figure.axes
    one, other = left.lines[0], right.lines[0]
    assert one.get_xdata() == pytest.approx([4 / 3, 2]) and one.get_ydata() == pytest.approx([1, 2.5])
    assert other.get_xdata() == pytest.approx([2 / 3, 4 / 3, 2]) == other.get_ydata()
    assert [axes.get_title("left") for axes in (left, right)] == ["a", "b"]
    assert {axes.get_xscale() for axes in (left, right)} | {axes.get_yscale() for axes in (left, right)} == {"log"}


def test_the_errors_of_a_module_are_drawn_under_the_names_of_the_methods():
    errors = {"svd": [0.6, 0.2], "modegpt": [0.4, 0.1]}
    (axes,) = baselines.module_errors([0.5, 0.9], errors).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.6, 0.2], [0.4, 0.1]]
    assert [list(line.get_xdata()) for line in axes.lines] == [[50, 90], [50, 90]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SVD", "MoDeGPT"]


def test_each_model_has_a_panel_and_each_method_one_entry_in_the_legend():
    left, right = (load(RESULTS / f"{name}.json") for name in ("smollm2-135m.methods", "opt-mini.methods"))
    figure = baselines.methods_on_two_models(left, right)
    for axes, results in zip(figure.axes, (left, right), strict=True):
        line = next(line for line in axes.lines if line.get_label() == "MoDeGPT")
        rows = [results.find(method="dense")[0], *results.find(method="modegpt")]
        assert line.get_ydata() == pytest.approx([row.value for row in rows])
        assert line.get_xdata() == pytest.approx([row.details["parameters"] / 1e6 for row in rows])
        assert results.settings["model"] in axes.get_title("left")
    (legend,) = figure.legends
    names = [text.get_text().split(" (")[0] for text in legend.get_texts()]
    assert sorted(names) == sorted(set(names)) and len(names) == 8
