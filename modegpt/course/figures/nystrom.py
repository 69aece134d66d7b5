"""The pictures of the notebook on the MLP: which channels stay, what that costs, and how many tokens it takes."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, SKY, WIDTH, YELLOW, style

CURVES = {  # color, line: dashed without the re-solve, solid with it
    "smallest weights dropped": (PINK, "--"),
    "random": (GREY, "--"),
    "activation energy": (YELLOW, "--"),
    "leverage": (SKY, "--"),
    "random + re-solve": (GREY, "-"),
    "activation energy + re-solve": (YELLOW, "-"),
    "leverage + re-solve": (BLUE, "-"),
}


def scores_and_errors(scores: Tensor, keep: int, kept: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Sorted leverage scores with the cut, and the output error of every selection.

    Args:
        scores: leverage scores, (channels,), in any order.
        keep: channels kept, where the cut is drawn.
        kept: channel counts of the right panel, ascending.
        errors: share of the output's mean square that is lost at each of `kept`; names from CURVES.
    """
    import matplotlib.pyplot as plt

    falling = scores.sort(descending=True).values.tolist()
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(1.2 * WIDTH, 1.1 * HEIGHT), width_ratios=(2, 3))
        left.plot(range(1, len(falling) + 1), falling, color=BLUE)
        left.fill_between(range(1, keep + 1), falling[:keep], color=BLUE, alpha=0.2, linewidth=0)
        left.axvline(keep, color=ORANGE)
        left.annotate(f"cut: {keep} kept", (keep, max(falling)), (6, -4), textcoords="offset points", color=ORANGE)
        left.set_ylim(bottom=0)
        left.set_xlabel("channel, by falling score")
        left.set_ylabel("ridge leverage score")
        left.set_title("No cliff in the scores")
        for name in sorted(errors, key=lambda name: -errors[name][0]):  # the legend in the order of the lines
            values, (color, line) = errors[name], CURVES[name]
            look = {"color": color, "linestyle": line, "marker": MARKER[color]}
            right.plot(kept, [100 * e for e in values], ms=4, label=name, **look)
        right.legend(fontsize=9.5)
        right.set_ylim(bottom=0)
        right.set_xlabel("channels kept")
        right.set_ylabel("held-out output, share of its mean square lost (%)")
        right.set_title("Choose well, and solve again")
    return figure


def error_against_tokens(tokens: Sequence[int], errors: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Calibration and held-out error of the re-solve against the calibration tokens, one panel for each damping.

    Args:
        tokens: calibration tokens, ascending.
        errors: panel title -> {"calibration", "held out", "no re-solve, held out"} -> share lost at `tokens`.
    """
    import matplotlib.pyplot as plt

    colors = {"calibration": GREEN, "held out": BLUE, "no re-solve, held out": GREY}
    with style():
        figure, panels = plt.subplots(1, len(errors), figsize=(WIDTH, HEIGHT), sharey=True, squeeze=False)
        for panel, (title, curves) in zip(panels[0], errors.items(), strict=True):
            for name, values in curves.items():
                look = {"color": colors[name], "marker": MARKER[colors[name]]}
                panel.plot(tokens, [100 * value for value in values], ms=4, label=name, **look)
            panel.set_xscale("log", base=2)
            panel.set_xticks(tokens, [f"{count}" for count in tokens])
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.set_xlabel("calibration tokens (log scale)")
            panel.set_title(title)
        panels[0, 0].set_ylabel("output, share of its mean square lost (%)")
        panels[0, 0].legend()
    return figure
