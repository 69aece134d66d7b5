import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

from modegpt.course.figures import modules


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_rotation_marks_the_entries_that_are_not_zero():
    matrix = torch.eye(4) + 0.5 * torch.eye(4).roll(2, 0)
    logits = {0: [1.0, 2.0], 10: [3.0, 4.0]}
    left, right = modules.rotation(matrix, logits, [0, 5]).axes
    marks = {tuple(place) for place in left.collections[0].get_offsets().tolist()}
    assert marks == {(i, i) for i in range(4)} | {(i, (i + 2) % 4) for i in range(4)}
    assert [list(line.get_ydata()) for line in right.lines] == list(logits.values())
    assert all(list(line.get_xdata()) == [0, 5] for line in right.lines)


def test_freedom_draws_each_change_and_tells_the_allowed_by_color():
    (axes,) = modules.freedom(
        [("MLP", "permute", True, 1e-15), ("MLP", "rotate", False, 1.5), ("x", "y", True, 0)]
    ).axes
    dots = axes.collections[0]
    assert dots.get_offsets()[:, 0].tolist() == pytest.approx([1e-15, 1.5, 1e-17])
    colors = [to_hex(color).upper() for color in dots.get_facecolor()]
    assert colors == [modules.GREEN, modules.ORANGE, modules.GREEN]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MLP: permute", "MLP: rotate", "x: y"]


def test_shares_fill_each_bar():
    shares = {
        "small": {"query-key": 0.1, "value-output": 0.1, "MLP": 0.5, "rest": 0.3},
        "large": {"query-key": 0.2, "value-output": 0.2, "MLP": 0.58, "rest": 0.02},
    }
    (axes,) = modules.parameter_shares(shares, {"small": 2_000_000, "large": 3_000_000_000}).axes
    widths = torch.tensor([bar.get_width() for bar in axes.patches]).view(4, 2)
    wanted = [list(share.values()) for share in shares.values()]
    torch.testing.assert_close(widths.T.double() / 100, torch.tensor(wanted, dtype=torch.float64))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small (2 M)", "large (3.0 B)"]
    assert "2" not in [text.get_text() for text in axes.texts]  # too narrow for a number
