"""The pictures of notebook 00, Start here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, ORANGE, WIDTH, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SELECTED, SOLVED, GONE = BLUE, GREEN, "#DDDDDD"
BOTTOM, STEP = 46, 22  # of the map's first row, and from row to row


@dataclass(frozen=True)
class Row:
    """One module of the map: its two matrices and, for each, what happens to it ("selected" or "solved")."""

    module: str
    left: str
    right: str
    between: str
    inner: str
    method: str
    left_fate: str
    right_fate: str
    notebook: str


def method_map(rows: Sequence[Row], blocks: Mapping[str, int], sparsity: Sequence[float], model: str) -> Figure:
    """The map of the method: three pairs of matrices, three decompositions, and a budget shared by the layers.

    Args:
        rows: one for each module of a decoder layer, three of them.
        blocks: the layer's parts in their order, and how many of the rows each takes.
        sparsity: share removed from each layer, which the strip at the bottom shows.
        model: whose layers these are.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (axes, strip) = plt.subplots(2, 1, figsize=(WIDTH, 7.4), height_ratios=(4.6, 1))
        axes.set(xlim=(0, 100), ylim=(-3, 71))
        axes.axis("off")
        axes.set_title("One layer: three pairs of matrices, each with one inner dimension to shrink")
        for x, head in ((45, "between the two"), (79, "method"), (94, "notebook")):
            axes.text(x, 68, head, ha="center", color=GREY, size=10)
        axes.annotate("", (2.5, 1.5), (2.5, 69), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 2})
        axes.text(0.3, 36, "residual stream, width $d_h$ stays", rotation=90, va="center", ha="center", size=10)
        _draw_blocks(axes, blocks)
        for place, row in enumerate(rows):
            _draw_row(axes, BOTTOM - STEP * place, row)
        _legend(axes)

        kept = [100 * (1 - phi) for phi in sparsity]
        strip.bar(range(len(kept)), kept, color=GREY, width=0.8)
        strip.bar(range(len(kept)), [100 - height for height in kept], bottom=kept, color=GONE, width=0.8)
        strip.set(xlabel=f"layer of {model}", ylabel="kept (%)", ylim=(0, 100), xticks=range(len(kept)))
        average = sum(sparsity) / len(sparsity)
        strip.set_title(f"All layers: global allocation shares out one budget, here {average:.0%} removed")
    return figure


def taste(errors: Mapping[str, float], claimed: str, control: str) -> Figure:
    """Bars of the error that each way to halve an MLP makes.

    Args:
        errors: relative output error on held-out tokens, by the name of the way.
        claimed: the name of the way that should win, in blue.
        control: the name of the one it is compared with, in orange.
    """
    import matplotlib.pyplot as plt

    names = sorted(errors, key=lambda name: -errors[name])
    marked = {claimed: BLUE, control: ORANGE}
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT - 1.4))
        colors = [marked.get(name, GREY) for name in names]
        axes.barh(range(len(names)), [100 * errors[name] for name in names], color=colors, height=0.65)
        for place, name in enumerate(names):
            axes.annotate(f" {100 * errors[name]:.1f} %", (100 * errors[name], place), va="center")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="relative error of the MLP's output on held-out tokens (%)")
        axes.margins(x=0.12)
        axes.set_title(f"The same number of channels, kept in {len(names)} ways")
    return figure


def _draw_blocks(axes: "Axes", blocks: Mapping[str, int]) -> None:
    """An outline around the rows of attention and one around that of the MLP, joined to the residual stream."""
    from matplotlib.patches import FancyBboxPatch

    top = BOTTOM + 19.5
    for name, count in blocks.items():
        height = STEP * count - 2
        axes.add_patch(
            FancyBboxPatch(
                (7.5, top - height),
                80,
                height,
                boxstyle="round,pad=0,rounding_size=1.5",
                facecolor="none",
                edgecolor=GREY,
            )
        )
        axes.plot([2.5, 7.5], [top - height / 2] * 2, color="black", linewidth=1.5)
        axes.text(9.2, top - height / 2, name, rotation=90, ha="center", va="center", color=GREY, size=11)
        top -= STEP * count


def _draw_row(axes: "Axes", bottom: float, row: Row) -> None:
    """One module: its name, a tall and a wide box (the pair), the method, the notebook."""
    middle = bottom + 8.5
    axes.text(20, middle, row.module, ha="center", va="center", size=13, weight="bold")
    _matrix(axes, 29, bottom + 1.5, 8, 14, row.left, row.left_fate, columns=True)
    axes.text(45, middle + 2, row.between, ha="center", va="center", size=10)
    axes.text(45, middle - 2.5, row.inner, ha="center", va="center", size=10, color=GREY)
    _matrix(axes, 53, bottom + 4, 14, 9, row.right, row.right_fate, columns=False)
    axes.text(79, middle, row.method, ha="center", va="center", size=11)
    axes.text(94, middle, row.notebook, ha="center", va="center", size=13, color=GREY)


def _matrix(axes: "Axes", x: float, y: float, width: float, height: float, name: str, fate: str, columns: bool) -> None:
    """A box of which half along the inner dimension is kept, in the color of its fate."""
    from matplotlib.patches import Rectangle

    color = SELECTED if fate == "selected" else SOLVED
    axes.add_patch(Rectangle((x, y), width, height, facecolor=GONE, edgecolor="black", linewidth=0.8))
    kept = (width / 2, height) if columns else (width, height / 2)
    corner = (x, y) if columns else (x, y + height / 2)
    axes.add_patch(Rectangle(corner, *kept, facecolor=color, edgecolor="black", linewidth=0.8))
    axes.text(x + width / 2, y + height + 0.8, name, ha="center", va="bottom", size=10)


def _legend(axes: "Axes") -> None:
    from matplotlib.patches import Rectangle

    for x, color, words in ((16, SELECTED, "kept as it was"), (39, SOLVED, "solved for again"), (64, GONE, "removed")):
        axes.add_patch(Rectangle((x, -2.6), 2.6, 2.6, facecolor=color, edgecolor="black", linewidth=0.8))
        axes.text(x + 3.6, -1.4, words, va="center", size=10)
