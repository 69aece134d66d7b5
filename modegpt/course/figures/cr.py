"""The pictures of notebook 04, CR for query-key."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, WIDTH, style


def error_and_bounds(ranks: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Figure:
    """The logit error of one head against the dims kept, and what bounds say about it.

    Args:
        ranks: dims kept.
        lines: name of a line -> its value at each of the ranks, as a share of the mean squared logit.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.85 * WIDTH, 0.8 * HEIGHT))
        for color, (name, values) in zip((BLUE, ORANGE, GREY), lines.items(), strict=False):
            axes.plot(ranks, values, color=color, marker=MARKER[color], ms=4)
            axes.annotate(f" {name}", (ranks[-1], values[-1]), va="center", color=color)
        axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
        axes.annotate("nothing kept", (ranks[0], 1), (0, -12), textcoords="offset points", color=GREY)
        axes.set_yscale("log")
        axes.set_xlim(right=ranks[-1] + 0.3 * (ranks[-1] - ranks[0]))
        axes.set_xticks(list(ranks)[::2])
        axes.set_xlabel("dims kept (of one head)")
        axes.set_ylabel("share of the mean squared logit")
        axes.set_title("The norm scores bound the error, and are far above it")
    return figure


def change_under_shift(shifts: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Figure:
    """How much logits change when query and key both move by the same number of positions.

    Args:
        shifts: positions moved.
        lines: name of a selection -> relative squared change of its logits at each shift. What is below 1e-12 is
            rounding and is drawn at 1e-12.
    """
    import matplotlib.pyplot as plt

    floor = 1e-12
    with style():
        figure, axes = plt.subplots(figsize=(0.85 * WIDTH, 0.8 * HEIGHT))
        for color, (name, values) in zip((ORANGE, PINK, BLUE), lines.items(), strict=False):
            zero = max(values) < floor
            axes.plot(shifts, [max(value, floor) for value in values], color=color, marker=MARKER[color])
            label = f"{name}: below 1e-12, rounding" if zero else name
            middle = len(shifts) // 2
            place = (shifts[middle], max(values[middle], floor))
            axes.annotate(label, place, (0, 10 if zero else -14), textcoords="offset points", color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(floor / 5, 10)
        axes.set_xticks(list(shifts), [str(shift) for shift in shifts])
        axes.minorticks_off()
        axes.set_xlabel("both tokens move by (positions)")
        axes.set_ylabel("relative squared change of the logits")
        axes.set_title("Half a rotary pair knows where in the text it stands")
    return figure


def kept_pairs_and_error(
    scores: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    slow_from: int,
    curves: Mapping[str, Mapping[int, float]],
) -> Figure:
    """Which rotary pairs each key/value head keeps, and the logit error of several ways to choose.

    Args:
        scores: name of a layer -> pair scores (kv_heads, pairs); drawn as the root of each head's
            share of its largest, so that small ones show.
        kept: name of a layer -> kept pairs (kv_heads, k), marked with dots.
        slow_from: first pair that does not complete a turn within the calibration window.
        curves: name of a choice -> dims kept -> logit error as a share of the mean squared logit.
    """
    import matplotlib.pyplot as plt

    rows = torch.cat([values / values.amax(-1, keepdim=True) for values in scores.values()])
    heads, pairs = len(next(iter(scores.values()))), rows.shape[-1]
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(1.2 * WIDTH, HEIGHT), width_ratios=(11, 10))
        left.imshow(rows.sqrt().numpy(), cmap="Greys", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest")
        marks = [
            (int(pair), number * heads + head)
            for number, name in enumerate(kept)
            for head in range(heads)
            for pair in kept[name][head]
        ]
        left.plot(*zip(*marks, strict=True), linestyle="", marker="o", markersize=5, color=ORANGE)
        for number in range(1, len(scores)):
            left.axhline(number * heads - 0.5, color="white", linewidth=5)
        left.axvline(slow_from - 0.5, color=BLUE, linestyle="--", linewidth=1.5)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "color": BLUE, "size": 9}
        left.annotate("turns within the window", (slow_from - 0.5, 1), (-4, 4), ha="right", **place)
        left.annotate("slower than the window", (slow_from - 0.5, 1), (4, 4), **place)
        left.set_yticks(range(len(rows)), [f"{name}, head {head}" for name in scores for head in range(heads)])
        left.set_xticks([0, *range(7, pairs, 8)])
        left.set_xlabel("rotary pair, fast to slow (gray: root of the score)")
        left.set_title("Kept pairs (dots) over pair scores (dark)\n")

        # three lines lie on each other: marks for two of them
        looks = (
            {"color": "black", "linestyle": "", "marker": "x", "zorder": 4},
            {"color": PINK, "linestyle": "", "marker": "o", "zorder": 3},
            {"color": BLUE},
            {"color": ORANGE, "linestyle": (0, (4, 3))},
            {"color": GREEN, "linestyle": ":"},
        )
        for look, (name, curve) in zip(looks, curves.items(), strict=False):
            right.plot(list(curve), list(curve.values()), linewidth=2, label=name, **look)
        right.set_yscale("log")
        right.set_xticks(range(0, 2 * pairs + 1, 8))
        low, high = (pick(value for curve in curves.values() for value in curve.values()) for pick in (min, max))
        right.set_ylim(low / 10, 1.5 * high)
        right.legend(loc="lower left", fontsize=9)
        right.set_xlabel("dims kept per head")
        right.set_ylabel("squared logit error / squared logit")
        right.set_title("What each choice loses, held-out text\n")
    return figure
