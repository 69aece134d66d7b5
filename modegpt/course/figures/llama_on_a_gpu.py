"""The pictures of notebook 13: where memory, operations and seconds go at published shapes, and what is gained."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from modegpt.study.results import Row
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, SKY, WIDTH, YELLOW, style

COLORS = (SKY, BLUE, GREEN, ORANGE, PINK, YELLOW)
PHASES = {"prefill": (GREEN, "s"), "decode": (BLUE, "o")}  # colour and marker


def stacked_memory(parts: Mapping[str, Mapping[str, float]], limit: float, measured: Mapping[str, float]) -> Figure:
    """Memory by part, one bar a case, beside what the card has and what was measured.

    Args:
        parts: case -> part -> bytes.
        limit: bytes of the card.
        measured: case -> bytes at the peak, where it was measured.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        _stacks(axes, {case: _gib(sizes) for case, sizes in parts.items()})
        for at, case in enumerate(parts):
            if case in measured:
                axes.plot(measured[case] / 2**30, at, "D", color="black", label="measured peak")
        axes.axvline(limit / 2**30, color=GREY, linestyle="--")
        card = f"a card of {limit / 1e9:.0f} GB"
        axes.annotate(card, (limit / 2**30, 1), xycoords=("data", "axes fraction"), color=GREY, va="bottom")
        _legend_below(axes, (0.5, -0.14))
        axes.set_xlabel("GiB")
    return figure


def _gib(sizes: Mapping[str, float]) -> dict[str, float]:
    return {part: size / 2**30 for part, size in sizes.items()}


def _stacks(axes: Axes, cases: Mapping[str, Mapping[str, float]]) -> None:
    """One horizontal bar a case, made of its parts; a part has the same colour in all of them."""
    names = list(dict.fromkeys(part for parts in cases.values() for part in parts))
    for at, parts in enumerate(cases.values()):
        start = 0.0
        for part, size in parts.items():
            axes.barh(
                at,
                size,
                left=start,
                color=COLORS[names.index(part) % len(COLORS)],
                height=0.6,
                label=part,
                edgecolor="white",
            )
            start += size
    axes.set_yticks(range(len(cases)), list(cases))
    axes.invert_yaxis()


def _legend_below(axes: Axes, place: tuple[float, float]) -> None:
    """What is drawn in many bars stands there once."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles, fontsize=9, loc="upper center", bbox_to_anchor=place, ncols=3)


def needed_and_measured(steps: Mapping[str, tuple[float, float]], where: str) -> Figure:
    """Seconds that a step took, with a mark at what its operations need at the card's best.

    Args:
        steps: step -> (seconds needed, seconds measured).
        where: the shape and the machine, for the axis.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.7 * HEIGHT))
        for at, (needed, measured) in enumerate(steps.values()):
            axes.barh(at, measured, color=SKY, height=0.5, label=None if at else "measured")
            axes.plot(needed, at, "|", color=ORANGE, ms=26, mew=4)
            axes.annotate(f" {needed / measured:.0%} of the peak", (measured, at), va="center", fontsize=9)
        axes.plot([], [], "|", color=ORANGE, ms=10, mew=4, label="at the data sheet's peak")
        axes.set_yticks(range(len(steps)), list(steps))
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"seconds, {where}")
        axes.legend(fontsize=9, loc="upper right")
    return figure


def time_against_cost(panels: Mapping[str, tuple[str, float, Mapping[str, Sequence[Row]]]]) -> Figure:
    """Milliseconds of one run against what it must compute or read, with the line through the points of a mode.

    The line meets the axis at what a run costs that computes and reads nothing.

    Args:
        panels: title -> (detail that holds the cost, how many of it are one unit of the axis, mode -> rows).
    """
    import matplotlib.pyplot as plt

    names = {"flops": "TFLOP computed", "bytes": "GB read"}
    with style():
        figure, every = plt.subplots(1, len(panels), figsize=(WIDTH, 0.75 * HEIGHT), squeeze=False)
        for axes, (title, (cost, unit, modes)) in zip(every[0], panels.items(), strict=True):
            for (mode, rows), color in zip(modes.items(), (BLUE, GREEN, ORANGE), strict=False):
                x, y = [row.details[cost] / unit for row in rows], [1e3 * row.details["seconds"] for row in rows]
                fixed, slope = line_through(x, y)
                axes.plot(x, y, MARKER[color], color=color, label=f"{mode}: {fixed:.1f}")
                axes.plot([0, max(x)], [fixed, fixed + slope * max(x)], color=color, lw=1)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(names[cost])
            axes.set_title(title)
            if modes:
                axes.legend(fontsize=9, title="ms at the axis", title_fontsize=9, loc="upper left")
            else:
                _nothing(axes)
        every[0, 0].set_ylabel("ms of one run")
    return figure


def _nothing(axes: Axes) -> None:
    axes.annotate("not timed", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)


def line_through(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Height at 0 and slope of the least-squares line."""
    mean_x, mean_y = fmean(x), fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return mean_y - slope * mean_x, slope


def split_and_speed(steps: Mapping[str, Mapping[str, float]], speeds: Mapping[str, Sequence[Row]]) -> Figure:
    """Seconds of a whole compression by step, and tokens per second against ratio beside what is allowed.

    Args:
        steps: case -> step -> seconds.
        speeds: "prefill" and "decode" -> rows of one case, the dense one first.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(1, 3, figsize=(11, 0.8 * HEIGHT), width_ratios=(5, 4, 4))
        _stacks(axes[0], steps)
        for at, parts in enumerate(steps.values()):
            axes[0].annotate(f" {sum(parts.values()):.0f} s", (sum(parts.values()), at), va="center")
        _legend_below(axes[0], (0.4, -0.2))
        axes[0].set_xlabel("seconds, steps added up over the layers")
        axes[0].margins(x=0.12)
        axes[0].set_title("Compressing: where the time goes")
        for panel, (phase, rows) in zip(axes[1:], speeds.items(), strict=True):
            _speed(panel, phase, rows)
    return figure


def scaling(seconds: Mapping[str, Mapping[int, float]]) -> Figure:
    """Seconds of a compression on more and more GPUs, beside a perfect split of the seconds on one.

    Args:
        seconds: shape -> number of GPUs -> seconds.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.7 * WIDTH, 0.85 * HEIGHT))
        for (shape, by), color in zip(seconds.items(), COLORS[1 : len(seconds) + 1], strict=True):
            axes.plot(list(by), list(by.values()), "-", marker=MARKER[color], color=color, label=shape)
            axes.plot(list(by), [by[1] / ranks for ranks in by], "--", color=color, linewidth=1)
        axes.plot([], [], "--", color=GREY, linewidth=1, label="a perfect split")
        axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="seconds in all")
        counts = sorted({ranks for by in seconds.values() for ranks in by})
        for axis, ticks in ((axes.xaxis, counts), (axes.yaxis, (5, 10, 20, 40))):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.legend()
        axes.set_title("The same compression on several GPUs")
    return figure


def _speed(axes: Axes, phase: str, rows: Sequence[Row]) -> None:
    axes.set_xlabel("block parameters removed (%)")
    axes.set_ylabel("tokens/s")
    if not rows:
        axes.set_title(phase.capitalize())
        _nothing(axes)
        return
    color, marker = PHASES[phase]
    percent, values = [100 * row.ratio for row in rows], [row.value for row in rows]
    allowed = [rows[0].value * row.details.get("allowed", 1.0) for row in rows]
    axes.plot(percent, allowed, "--", color=GREY, label="allowed by what is removed")
    spread = [row.spread or 0.0 for row in rows]
    axes.errorbar(percent, values, yerr=spread, color=color, marker=marker, capsize=3, label="measured")
    axes.set_ylim(0, 1.25 * max(*allowed, *values))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    about = rows[0].details
    axes.set_title(f"{phase.capitalize()} {about['batch']} x {about['tokens']:,}, {about['mode']}")
    axes.legend(fontsize=9, loc="upper left")
