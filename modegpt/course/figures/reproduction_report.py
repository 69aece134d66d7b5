"""The pictures of notebook 15: the paper's numbers and ours, and what a small model can say."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from modegpt.study.verdicts import FAILED, REPRODUCED, SHAPE, UNTESTED, Finding
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, SKY, WIDTH, YELLOW, log_ticks, style

COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
LOOKS = {REPRODUCED: (GREEN, "s"), SHAPE: (BLUE, "o"), FAILED: (ORANGE, "X")}


def deviations(findings: Sequence[Finding]) -> Figure:
    """Our numbers as multiples of the paper's, with the band in which they would agree; one row a number.

    Of nothing there is no multiple. Claims that could not be tested have a row without a point. A band that reaches
    down to zero has no left end.
    """
    import matplotlib.pyplot as plt

    rows = [(finding, number) for finding in findings for number in finding.numbers if number.paper]
    rows += [(finding, None) for finding in findings if finding.verdict == UNTESTED]
    left = min([number.ours / number.paper for _, number in rows if number] + [0.1]) / 3
    with style():
        figure, axes = plt.subplots(figsize=(1.2 * WIDTH, 1.2 + 0.24 * len(rows)))
        for at, (finding, number) in enumerate(rows):
            if number is None:
                axes.annotate("not testable here  ", (1, at), ha="right", va="center", color=GREY, fontsize=9)
                continue
            low, high = max(number.low / number.paper, left), number.high / number.paper
            axes.barh(at, high - low, left=low, height=0.7, color=SKY, alpha=0.35)
            color, marker = LOOKS[finding.verdict]
            fill = color if number.agrees else "white"  # one that lies outside its band, whatever the claim's verdict
            axes.plot(number.ours / number.paper, at, marker, color=color, markerfacecolor=fill, ms=8)
            ours, paper = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in (number.ours, number.paper))
            words = f"  {ours}; paper {paper}"
            axes.annotate(words, (1, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(left, max([3.0] + [2 * n.ours / n.paper for _, n in rows if n]))
        ticks = [tick for tick in (0.001, 0.01, 0.1, 0.5, 1, 2, 10, 100) if left <= tick <= axes.get_xlim()[1]]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.set_yticks(range(len(rows)), [number.what if number else finding.claim for finding, number in rows])
        axes.tick_params(axis="y", labelsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("ours, as a multiple of the paper's (shaded: agrees with the claim; hollow: does not)")
        for verdict in (name for name in LOOKS if any(finding.verdict == name for finding, _ in rows)):
            color, marker = LOOKS[verdict]
            axes.plot([], [], marker, color=color, label=verdict)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.3, -0.1 - 0.8 / len(rows)), ncols=3)
    return figure


def growth(paper: Mapping[str, Mapping[float, float]], ours: Mapping[str, Mapping[float, float]]) -> Figure:
    """Perplexity as a multiple of the dense model's against the share removed.

    Args:
        paper, ours: model -> ratio -> perplexity, the dense model at 0.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        colors = iter(COLORS)
        for models, look, words in ((paper, "--", "the paper"), (ours, "-", "measured")):
            for (name, values), color in zip(models.items(), colors, strict=False):
                ratios = sorted(values)
                times = [values[ratio] / values[0.0] for ratio in ratios]
                axes.plot(
                    [100 * ratio for ratio in ratios],
                    times,
                    look,
                    color=color,
                    marker=MARKER[color],
                    label=f"{name}, {words}",
                )
        axes.set_yscale("log")
        drawn = [y for line in axes.lines for y in line.get_ydata()]
        log_ticks(axes, drawn or [1.0, 2.0])
        axes.set_xlabel("block parameters removed (%)")
        axes.set_ylabel("perplexity, times that of the dense model")
        axes.legend(fontsize=9)
    return figure


def above_guessing(
    tasks: Sequence[str], guess: Sequence[float], cases: Mapping[str, Sequence[tuple[float, float]]]
) -> Figure:
    """Accuracy of every task beside what guessing gives.

    Args:
        guess: share that guessing gets right, for each task.
        cases: model -> (accuracy, its standard error) for each task.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        axes.bar(range(len(tasks)), [100 * g for g in guess], color=GREY, alpha=0.3, width=0.7, label="guessing")
        for i, ((name, found), color) in enumerate(zip(cases.items(), COLORS, strict=False)):
            places = [at + 0.5 * ((i + 0.5) / len(cases) - 0.5) for at in range(len(tasks))]
            values, errors = ([100 * part for part in parts] for parts in zip(*found, strict=True))
            bars = [2 * error for error in errors]
            axes.errorbar(places, values, yerr=bars, fmt=MARKER[color], color=color, capsize=3, label=name)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_ylabel("accuracy (%, bars: two standard errors)")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    return figure
