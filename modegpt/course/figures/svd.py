"""The pictures of the lesson on value-output: singular values, time, error against rank."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, WIDTH, log_ticks, style

HEAD_COLORS = (BLUE, ORANGE, GREEN, PINK, GREY, "black")


def singular_values_and_time(
    singular_values: Tensor, widths: Sequence[int], paper: Sequence[float], shortcut: Sequence[float]
) -> Figure:
    """Left, the singular values of every head's output; right, the time of both routes against the width.

    Args:
        singular_values: of every key/value head, descending, (heads, d); each head is drawn relative to its largest.
        widths: model widths of the timed layers.
        paper: seconds of the paper's two SVDs for a layer of each width.
        shortcut: seconds of the d x d shortcut for the same layers.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
        relative = singular_values / singular_values[:, :1]
        for head, values in enumerate(relative.tolist()):
            color = HEAD_COLORS[head % len(HEAD_COLORS)]
            left.plot(range(1, len(values) + 1), values, color=color, marker=MARKER[color], ms=4, markevery=8)
            left.annotate(
                f"head {head}", (0.97, 0.95 - 0.08 * head), xycoords="axes fraction", color=color, ha="right", va="top"
            )
        left.set_yscale("log")
        log_ticks(left, relative.flatten().tolist())
        left.set_xlabel("index of the singular value")
        left.set_ylabel("singular value / the head's largest")
        left.set_title("No head has a cliff to cut at")

        middle = len(widths) // 2
        for seconds, color, words, offset, side in (  # outside of both lines, which leaves the ratio the room between
            (paper, ORANGE, "paper's route", (-8, 8), "right"),
            (shortcut, BLUE, "shortcut", (8, -14), "left"),
        ):
            right.loglog(widths, seconds, color=color, marker=MARKER[color])
            at = (widths[middle], seconds[middle])
            right.annotate(words, at, offset, textcoords="offset points", color=color, ha=side)
        right.annotate(
            f"{paper[-1] / shortcut[-1]:.0f} times",
            (widths[-1], (paper[-1] * shortcut[-1]) ** 0.5),
            (-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=GREY,
        )
        right.plot([widths[-1]] * 2, [shortcut[-1], paper[-1]], color=GREY, linewidth=1, linestyle=":")
        right.set_xticks(list(widths), [f"{width:,}" for width in widths])
        right.minorticks_off()
        right.set_xlabel("model width $d_h$")
        right.set_ylabel("time for one layer (s)")
        right.set_title("The same pair, sooner")
    return figure


def error_against_rank(ranks: Sequence[int], errors: Mapping[str, Sequence[float]], title: str, dim: int) -> Figure:
    """Error of a layer's value-output pairs against the kept rank, one labelled line for each way of choosing them.

    Args:
        ranks: kept ranks, ascending.
        errors: relative squared error at each rank, by the label of the line.
        title: what one sees.
        dim: the full rank, where every error is zero.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        label_at = {}
        for (words, values), color in zip(errors.items(), HEAD_COLORS, strict=False):
            axes.plot(ranks, [100 * value for value in values], color=color, marker=MARKER[color], markersize=4)
            label_at[words] = (100 * values[0], color)
        # labels stand left of the first point, pushed apart where the lines start close together
        spread = 100 * max(max(values) for values in errors.values()) / 17
        height = -spread
        for words, (start, color) in sorted(label_at.items(), key=lambda item: item[1][0]):
            height = max(start, height + spread)
            axes.annotate(
                words, (ranks[0], height), (-8, 0), textcoords="offset points", color=color, ha="right", va="center"
            )
        axes.set_xlim(ranks[0] - 0.3 * (ranks[-1] - ranks[0]), dim)
        axes.set_xticks(list(ranks))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"kept rank $k$ of {dim}")
        axes.set_ylabel("share of the squared output lost (%)")
        axes.set_title(title)
    return figure
