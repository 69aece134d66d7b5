"""The pictures of notebook 01, What can be compressed."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, ORANGE, SKY, WIDTH, style

SHARE_COLORS = (BLUE, SKY, GREEN, GREY)  # query-key, value-output, MLP, all the rest
DARK = (BLUE, GREEN, GREY)  # white text is readable on these


def rotation(matrix: Tensor, logits: Mapping[int, Sequence[float]], distances: Sequence[int]) -> Figure:
    """What the rotary embedding mixes, and what it leaves of the position.

    Args:
        matrix: R_t, (d, d), the linear map that rotates a row at one position.
        logits: for some positions of the key, the logit of one query row against one key row, by distance.
        distances: position of the query minus that of the key, in tokens.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), width_ratios=(1, 1.25))
        dims = len(matrix)
        rows, columns = matrix.abs().gt(1e-9).nonzero(as_tuple=True)
        left.scatter(columns, rows, c=[BLUE if r == c else ORANGE for r, c in zip(rows, columns, strict=True)], s=7)
        left.set(xlim=(-1, dims), ylim=(dims, -1), aspect="equal", xlabel="dim after rotation", ylabel="dim before")
        left.set_xticks(ticks := [0, dims // 4, dims // 2, 3 * dims // 4, dims - 1], ticks)
        left.set_yticks(ticks, ticks)
        left.annotate("itself", (0.30 * dims, 0.24 * dims), color=BLUE)
        left.annotate("partner", (0.70 * dims, 0.13 * dims), color=ORANGE)
        left.set_title("Entries of $R_t$ that are not zero")
        looks = (("-", 5, SKY), ("--", 2.5, ORANGE), (":", 2, "black"))
        for (start, values), (line, width, color) in zip(logits.items(), looks, strict=False):
            right.plot(distances, values, line, linewidth=width, color=color, label=f"key at position {start}")
        right.set(xlabel="query position minus key position (tokens)", ylabel="attention logit")
        right.margins(y=0.15)
        right.legend(loc="best")
        right.set_title("Logits know the distance only")
    return figure


def freedom(changes: Sequence[tuple[str, str, bool, float]]) -> Figure:
    """Dots: how much an output moves under rewritings that respect a module's structure, and under those that do not.

    Args:
        changes: rows of (module, rewriting, whether theory allows it, relative change of the output).
    """
    import matplotlib.pyplot as plt

    floor = 1e-17
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.5 * len(changes) + 1.2))
        places = range(len(changes))
        colors = [GREEN if allowed else ORANGE for _, _, allowed, _ in changes]
        heights = [max(change, floor) for *_, change in changes]
        axes.scatter(heights, places, c=colors, s=60)
        for place, height, color in zip(places, heights, colors, strict=True):
            axes.annotate(
                f"{height:.0e}" if height < 1e-3 else f"{height:.2g}",
                (height, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=color,
            )
        axes.set_xscale("log")
        axes.set_xlim(floor, 1e4)
        axes.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
        axes.minorticks_off()
        axes.set_yticks(places, [f"{module}: {rewriting}" for module, rewriting, *_ in changes])
        axes.invert_yaxis()
        axes.set_xlabel("relative change of the module's output (float64, log scale)")
        for color, words in ((GREEN, "allowed: rounding errors only"), (ORANGE, "another function")):
            axes.scatter([], [], c=color, s=60, label=words)
        axes.legend(loc="center", bbox_to_anchor=(0.52, 0.5))
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.4)
        axes.set_title("What a rewriting of a pair does to the module's output")
    return figure


def parameter_shares(shares: Mapping[str, Mapping[str, float]], totals: Mapping[str, int]) -> Figure:
    """Where the parameters of a model are, one bar a model.

    Args:
        shares: for each model, the share of each part, in the same order; they sum to one.
        totals: parameters of each model.
    """
    import matplotlib.pyplot as plt

    names = list(shares)
    parts = list(next(iter(shares.values())))
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.46 * len(names) + 1.4))
        start = [0.0] * len(names)
        for part, color in zip(parts, SHARE_COLORS, strict=True):
            widths = [100 * shares[name][part] for name in names]
            axes.barh(range(len(names)), widths, left=start, color=color, height=0.72, label=part)
            for row, (left, width) in enumerate(zip(start, widths, strict=True)):
                if width > 3.5:
                    shade = "white" if color in DARK else "black"
                    axes.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center", color=shade, size=10)
            first = part.replace("-", "-\n")  # narrow segments get two lines
            axes.text(start[0] + widths[0] / 2, -0.45, first, ha="center", va="bottom", size=9.5, linespacing=0.95)
            start = [left + width for left, width in zip(start, widths, strict=True)]
        axes.set_yticks(range(len(names)), [f"{name} ({_short(totals[name])})" for name in names])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="share of all parameters (%)")
        axes.set_title("Most parameters are in the MLP", pad=32)
    return figure


def _short(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
