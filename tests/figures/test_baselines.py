from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.figures import baselines
from modegpt.results import load

RESULTS = Path(__file__).resolve().parents[2] / "figures" / "results"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_dots_are_in_order_and_those_of_the_method_are_filled():
    (axes,) = baselines.perplexity_by_weights({"Fisher": 110.0, "none": 190.0, "random": 105.0}, 80.0, ["Fisher"]).axes
    *dots, dense = axes.lines
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(105, 0), (110, 1), (190, 2)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "Fisher", "none"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False, True]
    assert set(dense.get_xdata()) == {80.0}


def test_weights_and_power_are_drawn_over_their_means_where_an_input_lives():
    power = torch.tensor([0.0, 1.0, 2.0, 3.0])
    left, right = baselines.weights_against_power(power, {"a": torch.tensor([1.0, 0, 2, 5]), "b": power}).axes
    dots = left.lines[0]
    assert dots.get_xdata() == pytest.approx([4 / 3, 2]) and dots.get_ydata() == pytest.approx([1, 2.5])
    assert right.lines[0].get_xdata() == pytest.approx(right.lines[0].get_ydata())
    assert left.get_title("left") == "a" and left.get_xscale() == left.get_yscale() == "log"


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
