import matplotlib.pyplot as plt
import pytest

from modegpt.allocate import Ranks
from modegpt.course.figures import compress_a_llama as compress_llama


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_seed_is_a_row_of_points_and_the_line_is_their_geometric_mean():
    (axes,) = compress_llama.perplexity_spread([0.1, 0.3], {0: [4.0, 20.0], 1: [9.0, 45.0]}, 3.0).axes
    mean, first, second, dense = axes.lines
    assert list(mean.get_xdata()) == [0, 10, 30] and mean.get_ydata() == pytest.approx([3, 6, 30])
    assert list(first.get_ydata()) == [4, 20] and list(second.get_ydata()) == [9, 45]
    assert dense.get_ydata() == 3 or list(dense.get_ydata()) == [3]
    assert axes.get_yscale() == "log"


def test_ranks_are_shown_as_shares_of_the_full_sizes():
    ranks = [Ranks(32, 64, 50), Ranks(64, 48, 100)]
    left, right = compress_llama.ranks_per_layer(ranks, Ranks(64, 64, 200), [0.3, 0.1]).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[50, 100], [100, 75], [25, 50]]
    assert [bar.get_height() for bar in right.patches] == [0.3, 0.1]
    assert len(left.get_legend().get_texts()) == 3


def test_modules_of_equal_ranks_share_one_name():
    left, _ = compress_llama.ranks_per_layer([Ranks(8, 8, 5)], Ranks(16, 16, 10), [0.2]).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["query-key and value-output", "MLP"]


def test_every_window_is_a_line_over_the_models():
    (axes,) = compress_llama.window_losses({"dense": [3.0, 2.0], "small": [3.5, 2.4]}).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[3.0, 3.5], [2.0, 2.4]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dense", "small"]
