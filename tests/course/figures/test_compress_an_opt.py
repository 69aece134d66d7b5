import matplotlib.pyplot as plt
import pytest

from modegpt.course.figures import compress_an_opt as compress_opt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_bars_of_a_layer_add_up_to_its_channels():
    (axes,) = compress_opt.firing_channels([5, 0], [2, 1], [4, 9], 10).axes
    often, rare, silent = axes.containers
    assert [bar.get_height() for bar in often] == [3, 9]
    assert [(bar.get_y(), bar.get_height()) for bar in rare] == [(3, 2), (9, 1)]
    assert [(bar.get_y(), bar.get_height()) for bar in silent] == [(5, 5), (10, 0)]
    (kept,) = axes.collections
    assert [line[:, 1].tolist() for line in kept.get_segments()] == [[4, 4], [9, 9]]


def test_the_shares_lost_are_drawn_in_percent():
    (axes,) = compress_opt.selection_errors([8, 16], {"dims": [0.3, 0.1], "pairs": [0.4, 0.2]}).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[8, 16], [8, 16]]
    assert [list(line.get_ydata()) for line in axes.lines] == [[30, 10], [40, 20]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dims", "pairs"]


def test_every_seed_is_a_row_of_points_and_the_lines_are_geometric_means():
    by_way = {
        "through the origin": {0: [4.0, 20.0], 1: [9.0, 45.0]},
        "with an intercept": {0: [4.0, 18.0], 1: [4.0, 32.0]},
    }
    (axes,) = compress_opt.perplexity_spread([0.1, 0.3], by_way, 3.0).axes
    mean, first, second, other, third, fourth, dense = axes.lines
    assert list(mean.get_xdata()) == list(other.get_xdata()) == [0, 10, 30]
    assert mean.get_ydata() == pytest.approx([3, 6, 30]) and other.get_ydata() == pytest.approx([3, 4, 24])
    drawn = [list(line.get_ydata()) for line in (first, second, third, fourth)]
    assert drawn == [[4, 20], [9, 45], [4, 18], [4, 32]]
    assert set(dense.get_ydata()) == {3.0} and axes.get_yscale() == "log"
