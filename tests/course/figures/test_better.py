from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from modegpt.allocate import LayerShape, Ranks, SharedShape
from modegpt.course.figures import better as figures
from modegpt.study.results import load

RESULTS = Path(__file__).resolve().parents[3] / "figures" / "results"
SHAPE = LayerShape(query_key=8, value=8, mlp=40, query_key_cost=1_000_000, value_cost=500_000, mlp_cost=100_000)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def stored(name):
    return load(RESULTS / f"smollm2-135m.{name}.json")


def test_a_price_is_the_divergence_over_the_parameters_given_up():
    measured = [
        (0, "mlp", 30, 0.5),
        (1, "mlp", 30, 0.25),
        (0, "mlp", 20, 3.0),
        (0, "value", 6, 0.2),
        (1, "value", 6, 0.1),
    ]
    (axes,) = figures.prices(measured, SHAPE).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["MLP, 30 of 40"] == ([0, 1], [0.5, 0.25]) and lines["MLP, 20 of 40"] == ([0], [1.5])
    assert lines["value-output, 6 of 8"] == ([0, 1], pytest.approx([0.2, 0.1]))


def test_sums_are_drawn_by_kind_beside_the_diagonal():
    (axes,) = figures.sums([(0.1, 0.2, "two"), (1.0, 3.0, "all"), (0.3, 0.3, "two")]).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[:2]}
    assert drawn == {"two": ([0.1, 0.3], [0.2, 0.3]), "all": ([1.0], [3.0])}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_size_chosen_lies_on_its_curve_and_the_price_is_the_slope():
    figure = figures.chosen_sizes(["a", "b"], [[1, 2, 3], [1, 2]], [[0.9, 0.2, 0], [0.5, 0]], [1, 0], 0.4)
    for axes, name, point in zip(figure.axes, "ab", ((2, 0.2), (1, 0.5)), strict=True):
        curve, slope, dot = axes.lines
        assert axes.get_title("left") == name and slope.get_slope() == -0.4
        assert (*dot.get_xdata(), *dot.get_ydata()) == point
        assert point in zip(curve.get_xdata(), curve.get_ydata(), strict=True)


def test_every_module_of_every_layer_is_a_bar():
    figure = figures.ranks({"one": [Ranks(4, 8, 10), Ranks(8, 2, 40)], "other": [Ranks(8, 8, 40)] * 2}, SHAPE)
    left, right = figure.axes
    heights = [[bar.get_height() for bar in group] for group in left.containers]
    assert heights == [[50, 100], [100, 25], [25, 100]]
    assert {bar.get_height() for group in right.containers for bar in group} == {100}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["query-key", "value-output", "MLP"]


def test_a_shared_projection_is_a_bar_of_its_own_rank():
    layers = [Ranks(8, 8, 40, shared=2), Ranks(8, 8, 40)]
    (axes,) = figures.ranks({"shared": layers}, replace(SharedShape.of(SHAPE, 16), query_key=4)).axes
    assert [bar.get_height() for bar in axes.containers[0]] == [50, 100]


def test_each_text_is_a_line_over_the_shares():
    (axes,) = figures.corrected([0, 0.5, 1], {"a": [-3, -5, -4], "b": [-1, 0, 2]}).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines[:2]} == {"a": [-3, -5, -4], "b": [-1, 0, 2]}


def test_both_methods_are_drawn_from_the_stored_results():
    better, tasks = stored("better.h100"), stored("better-tasks.h100")
    figure = figures.paper_and_ours(better, tasks, stored("retention"))
    for axes, text in zip(figure.axes, ("wikitext2", "c4"), strict=False):
        paper, ours = (container.lines[0] for container in axes.containers)
        (dense,) = better.find(method="dense", data=text)
        assert list(paper.get_xdata()) == list(ours.get_xdata()) == [0, 20, 30, 40, 50]
        assert paper.get_ydata()[0] == ours.get_ydata()[0] == dense.value
        stored_paper = [r.value for r in better.find(variant="modegpt, wikitext2+c4+alpaca", data=text)]
        assert list(paper.get_ydata()[1:]) == stored_paper and all(ours.get_ydata()[1:] < paper.get_ydata()[1:])
    ours, *paper = figure.axes[2].containers
    means = [100 * row.value for row in tasks.find(data="mean of tasks")]
    assert list(ours.lines[0].get_ydata()) == pytest.approx(means)
    assert [float(each.lines[0].get_xdata()[0]) for each in paper] == pytest.approx([30, 30, 25])
