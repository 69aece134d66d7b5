import matplotlib.pyplot as plt
import pytest
import torch

from modegpt.allocate import LayerShape, Ranks
from modegpt.course.figures import global_sparsity as allocation


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def _heights(line):
    return [float(y) for y in line.get_ydata()]


def test_signal_plots_each_dropped_layer_and_both_norms():
    influence, first, median = torch.tensor([1.0, 0.1, 0.2]), torch.tensor([2.0, 50, 60]), torch.tensor([1.0, 2, 3])
    left, right = allocation.signal(influence, {0: 8.0, 2: 0.5}, first, median, odd=2).axes
    points = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in left.lines]
    assert [*points[0], *points[1]] == pytest.approx([1.0, 8.0, 0.2, 0.5])
    assert [text.get_text() for text in left.texts] == ["0", "2"]
    assert [_heights(line) for line in right.lines[:2]] == [first.tolist(), median.tolist()]
    assert left.lines[0].get_color() != left.lines[1].get_color()


def test_allocations_are_in_percent_and_labelled_with_their_temperature():
    influence = torch.tensor([0.5, 0.1, 0.2])
    left, right = allocation.allocations(influence, {0.2: torch.tensor([0.1, 0.5, 0.3])}, 0.3).axes
    assert _heights(left.lines[0]) == pytest.approx([10, 50, 30])
    assert left.texts[0].get_text().strip() == "ε = 0.2"
    assert _heights(right.lines[0]) == pytest.approx([0.5, 0.1, 0.2])
    assert [text.get_text() for text in right.texts] == ["0", "2", "1"]


def test_capped_sorts_all_three_allocations_alike_and_states_their_means():
    raw, clipped, filled = torch.tensor([[0.2, 1.0, 0.6], [0.2, 0.8, 0.6], [0.25, 0.8, 0.75]])
    (axes,) = allocation.capped(raw, clipped, filled, 0.8).axes
    assert [_heights(line) for line in axes.lines[1:]] == [
        pytest.approx(heights) for heights in ([100, 60, 20], [80, 60, 20], [80, 75, 25])
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]
    assert "mean 53.3 %" in axes.get_legend().texts[1].get_text()


def test_rounded_shows_what_heads_mlp_and_layer_lose():
    shape = LayerShape(query_key=8, value=8, mlp=100, query_key_cost=10, value_cost=10, mlp_cost=4)
    (axes,) = allocation.rounded(torch.tensor([0.4, 0.0]), [Ranks(6, 6, 50), Ranks(8, 8, 100)], shape, 2).axes
    heads, mlp, layer, wanted = (_heights(line) for line in axes.lines)
    assert (heads, mlp, wanted) == (pytest.approx([25, 0]), pytest.approx([50, 0]), pytest.approx([40, 0]))
    assert layer == pytest.approx([100 * (1 - 320 / 560), 0])
