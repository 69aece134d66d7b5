"""A picture for each experiment of `modegpt.study.claims`, from its results file."""

import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modegpt.study.results import DENSE, MEAN, Results, Row, loss_per_million, mean_and_spread
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, SKY, WIDTH, YELLOW, log_ticks, style

COLORS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY)


def _measured(results: Results) -> list[Row]:
    return [row for row in results.rows if row.value is not None]


def _axes(title: str) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
    axes.set_title(title)
    return figure, axes


def lines_of_perplexity(results: Results, title: str, x: Callable[[Row], float], xlabel: str) -> Figure:
    """Perplexity against what `x` makes of a row, a line for each variant, bars over seeds."""
    rows = _measured(results)
    with style():
        figure, axes = _axes(title)
        for variant, color in zip(dict.fromkeys(row.variant for row in rows), COLORS, strict=False):
            mine = [row for row in rows if row.variant == variant]
            _line(axes, mine, x, color, variant)
        _perplexity_axis(axes, [row.value for row in rows], results)
        axes.set_xlabel(xlabel)
        axes.legend()
    return figure


def _line(axes: Axes, rows: Sequence[Row], x: Callable[[Row], float], color: str, label: str) -> None:
    points = sorted({x(row) for row in rows})
    found = [mean_and_spread(row for row in rows if x(row) == point) for point in points]
    values, errors = zip(*found, strict=True)
    axes.errorbar(points, values, yerr=errors, color=color, marker=MARKER[color], capsize=3, label=label)


def _perplexity_axis(axes: Axes, values: Sequence[float], results: Results) -> None:
    axes.set_yscale("log")
    log_ticks(axes, values)
    axes.set_ylabel(f"perplexity on {results.settings['text']}")


def bars(axes: Axes, groups: dict[str, dict[str, tuple[float, float]]], labels: bool = True) -> None:
    """Grouped bars: group -> series -> (height, error)."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(series)
    for index, (name, color) in enumerate(zip(series, COLORS, strict=False)):
        places = [place for place, group in enumerate(groups.values()) if name in group]
        heights, errors = zip(*(group[name] for group in groups.values() if name in group), strict=True)
        x = [place + (index - (len(series) - 1) / 2) * width for place in places]
        axes.bar(x, heights, width * 0.95, yerr=errors, color=color, capsize=2, label=name, error_kw={"linewidth": 1})
        for left, height, error in zip(x, heights, errors, strict=True) if labels else ():
            axes.annotate(
                f"{height:.1f}", (left, height + error), (0, 2), textcoords="offset points", ha="center", size=8
            )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 1.35 * axes.dataLim.ymax)  # room for the legend


def windows(results: Results) -> Figure:
    """Dense and compressed, each text at each length."""
    import matplotlib.pyplot as plt

    rows = _measured(results)
    with style():
        figure, panels = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
        for axes, ratio in zip(panels, sorted({row.ratio for row in rows}), strict=False):
            mine = [row for row in rows if row.ratio == ratio]
            texts = dict.fromkeys(row.data for row in mine)
            bars(axes, {text: {r.variant: (r.value, r.spread or 0) for r in mine if r.data == text} for text in texts})
            axes.set_title(f"{ratio:.0%} of the blocks removed" if ratio else "dense")
            axes.set_ylabel("perplexity")
            axes.legend(fontsize=9, loc="upper left")
    return figure


def allocation(results: Results) -> Figure:
    """Global against uniform allocation."""
    return lines_of_perplexity(results, "who gets the budget", lambda row: 100 * row.ratio, "removed (%)")


def resolve(results: Results) -> Figure:
    """Selection alone against selection and re-solve."""
    return lines_of_perplexity(results, "what the re-solve buys", lambda row: 100 * row.ratio, "removed (%)")


def size(results: Results) -> Figure:
    """Perplexity against the number of calibration samples."""
    rows = _measured(results)
    length = results.settings["calibration_length"]
    with style():
        figure, axes = _axes("how much calibration is enough")
        _line(axes, rows, lambda row: row.details["samples"], BLUE, "")
        sizes = sorted({row.details["samples"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(count) for count in sizes])
        _perplexity_axis(axes, [row.value for row in rows], results)
        axes.set_xlabel(f"calibration samples of {length} tokens")
    return figure


def calibration(results: Results) -> Figure:
    """Each evaluation text after each calibration text."""
    rows = _measured(results)
    found = {
        text: {
            variant: mean_and_spread(row for row in rows if (row.data, row.variant) == (text, variant))
            for variant in dict.fromkeys(row.variant for row in rows if row.data == text)
        }
        for text in dict.fromkeys(row.data for row in rows)
    }
    with style():
        figure, axes = _axes("calibration text against evaluation text")
        bars(axes, found)
        axes.set_ylabel("perplexity")
        axes.set_xlabel("evaluated on")
        axes.legend(fontsize=9, loc="upper left", ncols=2)
    return figure


def modules(results: Results) -> Figure:
    """Loss for each million parameters that one module alone gives up."""
    rows = _measured(results)
    dense = next(row for row in rows if row.method == DENSE)
    with style():
        figure, axes = _axes("which module hurts most per parameter")
        variants = dict.fromkeys(row.variant for row in rows if row.method != DENSE)
        for variant, color in zip(variants, COLORS, strict=False):
            mine = [row for row in rows if row.variant == variant]
            shares = sorted({row.ratio for row in mine})
            costs = [[loss_per_million(row, dense) for row in mine if row.ratio == share] for share in shares]
            errors = [statistics.stdev(cost) if len(cost) > 1 else 0 for cost in costs]
            means = [statistics.mean(cost) for cost in costs]
            axes.errorbar(
                [100 * s for s in shares],
                means,
                yerr=errors,
                color=color,
                marker=MARKER[color],
                capsize=3,
                label=variant,
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of all block parameters, taken from this module alone (%)")
        axes.set_ylabel("added loss per million parameters\n(nats per token)")
        axes.legend()
    return figure


def better(results: Results) -> Figure:
    """The paper's method and modegpt-plus on every text, a panel a text."""
    import matplotlib.pyplot as plt

    rows = _measured(results)
    texts = list(dict.fromkeys(row.data for row in rows))
    with style():
        figure, panels = plt.subplots(1, len(texts), figsize=(1.3 * WIDTH, HEIGHT), squeeze=False)
        for axes, text in zip(panels[0], texts, strict=True):
            mine = [row for row in rows if row.data == text]
            dense = next((row.value for row in mine if row.method == DENSE), None)
            variants = dict.fromkeys(row.variant for row in mine if row.method != DENSE)
            for variant, color in zip(variants, COLORS, strict=False):
                _line(axes, [row for row in mine if row.variant == variant], lambda r: 100 * r.ratio, color, variant)
            if dense:
                axes.axhline(dense, color=GREY, linewidth=1, linestyle=":")
            axes.set_yscale("log")
            log_ticks(axes, [row.value for row in mine])
            axes.set_title(text)
            axes.set_xlabel("removed (%)")
        panels[0][0].set_ylabel("perplexity")
        panels[0][0].legend(fontsize=8)
    return figure


def ingredients(results: Results) -> Figure:
    """Perplexity with each ingredient alone, a group a ratio."""
    rows = [row for row in _measured(results) if row.data == results.settings["text"]]
    groups = {
        f"{ratio:.0%} removed": {row.variant: (row.value, 0.0) for row in rows if row.ratio == ratio}
        for ratio in sorted({row.ratio for row in rows})
    }
    with style():
        figure, axes = _axes("what each ingredient buys")
        bars(axes, groups)
        axes.set_ylabel(f"perplexity on {results.settings['text']}")
        axes.legend(fontsize=8, loc="upper left", ncols=2)
    return figure


def recovery(results: Results) -> Figure:
    """Perplexity on every text and the mean accuracy of the tasks, with and without LoRA."""
    import matplotlib.pyplot as plt

    rows = _measured(results)
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(1.3 * WIDTH, HEIGHT), width_ratios=(2, 1))
        texts = dict.fromkeys(row.data for row in rows if row.what == "perplexity")
        bars(left, {text: {r.variant: (r.value, 0.0) for r in rows if r.data == text} for text in texts})
        left.set_ylabel("perplexity")
        left.legend(fontsize=8, loc="upper left", ncols=2)
        means = {row.variant: (100 * row.value, 100 * (row.spread or 0)) for row in rows if row.data == MEAN}
        bars(right, {"mean of five tasks": means})
        right.set_ylabel("accuracy (%)")
    return figure


def retention(results: Results) -> Figure:
    """Accuracy of each task, dense and compressed, with what is kept of the mean in the legend."""
    rows = _measured(results)
    means = {(row.ratio, row.variant): row.value for row in rows if row.data == MEAN}
    dense = next(value for (ratio, _), value in means.items() if not ratio)

    def words(row: Row) -> str:
        key = (row.ratio, row.variant)
        return f"{row.ratio:.0%} removed, {row.variant} ({means[key] / dense:.0%} kept)" if row.ratio else "dense"

    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault(row.data, {})[words(row)] = (100 * row.value, 100 * (row.spread or 0))
    with style():
        figure, axes = _axes("zero-shot accuracy that is left")
        bars(axes, groups, labels=False)
        axes.set_ylabel("accuracy (%)")
        axes.legend(fontsize=8, loc="upper left", ncols=2)
    return figure


def time(results: Results) -> Figure:
    """Seconds of each step."""
    rows = _measured(results)
    with style():
        figure, axes = _axes(f"where the time goes ({results.device})")
        axes.barh([row.variant for row in rows], [row.value for row in rows], color=BLUE)
        for place, row in enumerate(rows):
            axes.annotate(f"{row.value:.2g} s", (row.value, place), (4, 0), textcoords="offset points", va="center")
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
    return figure
