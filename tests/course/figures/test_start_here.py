import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from modegpt.course.figures import start_here as start


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_map_shows_every_module_and_what_each_layer_keeps():
    rows = [
        start.Row("query-key", "W_Q", "W_K", "rotation", "k of d", "CR", "selected", "selected", "04"),
        start.Row("value-output", "W_V", "W_O", "attention", "k of d", "SVD", "solved", "solved", "05"),
        start.Row("MLP", "W_U", "W_D", "silu", "k of d_int", "Nyström", "selected", "solved", "03"),
    ]
    sparsity = [0.1, 0.5, 0.3]
    picture, strip = start.method_map(rows, {"attention": 2, "MLP block": 1}, sparsity, "tiny").axes
    assert strip.get_xlabel() == "layer of tiny"
    words = [text.get_text() for text in picture.texts]
    for row in rows:
        assert {row.module, row.left, row.right, row.between, row.inner, row.method, row.notebook} <= set(words)
    assert {"attention", "MLP block"} <= set(words)
    heights = [bar.get_height() for bar in strip.patches]
    assert heights == pytest.approx([90, 50, 70, 10, 50, 30])
    assert "30%" in strip.get_title(loc="left")


def test_map_colors_the_fate_of_each_matrix():
    row = start.Row("MLP", "W_U", "W_D", "silu", "k", "Nyström", "selected", "solved", "03")
    picture, _ = start.method_map([row], {"MLP": 1}, [0.2], "tiny").axes
    colors = [to_hex(patch.get_facecolor()).upper() for patch in picture.patches if patch.get_fill()]
    assert colors.count(start.SELECTED.upper()) == colors.count(start.SOLVED.upper()) == 2  # a matrix and the legend


def test_taste_draws_the_errors_it_is_given():
    (axes,) = start.taste({"heavy": 0.6, "solved": 0.4, "chance": 0.7}, claimed="solved", control="heavy").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert dict(zip(names, (bar.get_width() for bar in axes.patches), strict=True)) == pytest.approx(
        {"chance": 70, "heavy": 60, "solved": 40}
    )
    colors = [to_hex(bar.get_facecolor()).upper() for bar in axes.patches]
    assert colors == [start.GREY, start.ORANGE, start.BLUE]
