"""The pictures of notebook 12: what modules cost, whether costs add up, who pays, how much to correct, what it buys."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modegpt.allocate import MODULES, LayerShape, Module, Ranks
from modegpt.study.results import DENSE, MEAN, Results, Row, mean_and_spread
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, WIDTH, log_ticks, style

NAMES: dict[Module, str] = {"query_key": "query-key", "value": "value-output", "mlp": "MLP"}
COLORS: dict[Module, str] = {"query_key": ORANGE, "value": GREEN, "mlp": BLUE}
TEXT_NAMES = {"wikitext2": "WikiText-2", "c4": "C4"}


def prices(measured: Sequence[tuple[int, Module, int, float]], shape: LayerShape) -> Figure:
    """What each module of each layer costs, per million parameters that it gives up, log scale.

    Args:
        measured: (layer, module, size, nats per token), as `Curves.measured` has them.
        shape: of a layer, which says how many parameters a size gives up.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        for module in MODULES:
            full, cost = getattr(shape, module), getattr(shape, f"{module}_cost")
            sizes = sorted({size for _, of, size, _ in measured if of == module}, reverse=True)
            for size, line, fill in zip(sizes, ("-", "--"), ("full", "none"), strict=False):
                mine = sorted((layer, kl) for layer, of, at, kl in measured if (of, at) == (module, size))
                axes.plot(
                    [layer for layer, _ in mine],
                    [kl / ((full - size) * cost / 1e6) for _, kl in mine],
                    color=COLORS[module],
                    linestyle=line,
                    marker=MARKER[COLORS[module]],
                    fillstyle=fill,
                    label=f"{NAMES[module]}, {size:,} of {full:,}",
                )
        axes.set_yscale("log")
        axes.set_ylim(bottom=3e-4)  # what never fires costs nothing, and leaves the frame
        axes.set_xlabel("layer")
        axes.set_ylabel("KL divergence per million\nparameters removed (nats per token)")
        axes.set_title("What a parameter is worth depends on where it is")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sums(together: Sequence[tuple[float, float, str]]) -> Figure:
    """The divergence of several modules shrunk together against the sum of their own, log scales.

    Args:
        together: (sum, together, what they have in common), both in nats per token.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.75 * WIDTH, HEIGHT))
        kinds = dict.fromkeys(kind for *_, kind in together)
        for kind, color in zip(kinds, (BLUE, ORANGE, GREEN), strict=False):
            mine = [(x, y) for x, y, of in together if of == kind]
            axes.plot(*zip(*mine, strict=True), MARKER[color], color=color, label=kind)
        axes.axline((1e-2, 1e-2), (1, 1), color=GREY, linewidth=1, linestyle=":", label="the sum")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("sum of the modules' own divergences (nats per token)")
        axes.set_ylabel("divergence of all together")
        axes.set_title("Divergences add up, as long as they are small")
        axes.legend(loc="upper left")
    return figure


def chosen_sizes(
    names: Sequence[str],
    kept: Sequence[Sequence[float]],
    losses: Sequence[Sequence[float]],
    chosen: Sequence[int],
    price: float,
) -> Figure:
    """A panel for each module: its divergence at every size, the size chosen, and the price there as a slope.

    Args:
        names: of the modules.
        kept: for each module the parameters of its sizes, in millions.
        losses: for each module the divergence at these sizes, in nats per token.
        chosen: for each module the index of its size.
        price: nats per million parameters, the Lagrange multiplier.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(1, len(names), figsize=(1.15 * WIDTH, 0.8 * HEIGHT), sharey=True)
        for axes, name, x, y, at in zip(panels, names, kept, losses, chosen, strict=True):
            axes.plot(x, y, color=BLUE, marker="." if len(x) < 20 else "")
            axes.axline((x[at], y[at]), slope=-price, color=GREY, linewidth=1, linestyle=":")
            axes.plot(x[at], y[at], "o", color=ORANGE, markersize=9)
            axes.set_title(name)
            axes.set_xlabel("parameters kept (M)")
        highest = max(y[at] for y, at in zip(losses, chosen, strict=True))
        panels[0].set_ylim(-0.1 * highest, 3 * highest)
        panels[0].set_ylabel("KL divergence (nats per token)")
        figure.suptitle("One price for all: lines of one slope touch each curve from below at the size chosen")
    return figure


def ranks(allocations: Mapping[str, Sequence[Ranks]], shape: LayerShape) -> Figure:
    """What every module of every layer keeps, a panel for each allocation.

    Args:
        allocations: name -> ranks of each layer.
        shape: sizes of a whole layer; a `SharedShape` where there are shared projections.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(1, len(allocations), figsize=(WIDTH, HEIGHT), sharey=True, squeeze=False)
        for axes, (name, layers) in zip(panels[0], allocations.items(), strict=True):
            for row, module in enumerate(MODULES):
                share = [100 * shape.sizes(layer)[module] / getattr(shape, module) for layer in layers]
                places = [index + 0.27 * (row - 1) for index in range(len(share))]
                axes.bar(places, share, 0.25, color=COLORS[module], label=NAMES[module])
            axes.set_title(name)
            axes.set_xticks(range(len(layers)))
            axes.set_xlabel("layer")
        panels[0, 0].set_ylabel("size kept (%)")
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
    return figure


def corrected(shares: Sequence[float], changes: Mapping[str, Sequence[float]]) -> Figure:
    """How perplexity changes with the share of earlier layers' error that is corrected, a line for each text.

    Args:
        shares: beta, ascending.
        changes: text -> the change of its perplexity against no correction, in percent, for each share.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.75 * WIDTH, 0.85 * HEIGHT))
        for (name, values), color in zip(changes.items(), (BLUE, ORANGE, GREEN, PINK), strict=False):
            axes.plot(shares, values, color=color, marker=MARKER[color], label=name)
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        axes.set_xticks(shares)
        axes.set_xlabel("share β of the earlier layers' error")
        axes.set_ylabel("change of perplexity (%)")
        axes.legend()
    return figure


def paper_and_ours(better: Results, tasks: Results, paper_tasks: Results) -> Figure:
    """The paper's method and modegpt-plus on two texts and on the tasks, from the stored results.

    Args:
        better: perplexities by `modegpt study claims better`, of whose calibrations the first is drawn.
        tasks: accuracies by `better-tasks`.
        paper_tasks: accuracies by `retention`: the paper's method, at some ratios and on other calibration texts.
    """
    import matplotlib.pyplot as plt

    mixed = better.settings["calibrations"][0]
    with style():
        figure, panels = plt.subplots(1, 3, figsize=(1.25 * WIDTH, HEIGHT))
        for axes, (text, name) in zip(panels, TEXT_NAMES.items(), strict=False):
            (dense,) = better.find(method=DENSE, data=text)
            values = [dense.value]
            for variant, color, label in (
                (f"modegpt, {mixed}", BLUE, "the paper's method"),
                (f"modegpt-plus, {mixed}", ORANGE, "ours"),
            ):
                values += _against_ratio(axes, [dense, *better.find(variant=variant, data=text)], 1, color, label)
            axes.axhline(dense.value, color=GREY, linewidth=1, linestyle=":")
            axes.set_yscale("log")
            log_ticks(axes, values)
            axes.set_title(f"{name}: perplexity")
        panels[0].legend(loc="upper left")
        dense, *mine = tasks.find(data=MEAN)
        _against_ratio(panels[2], [dense, *mine], 100, ORANGE, "ours")
        others = [row for row in paper_tasks.find(data=MEAN) if row.method != DENSE]
        for row, marker in zip(others, "ov^", strict=True):
            text = row.variant.removeprefix("calibrated on ").replace("wikitext2:validation", "WikiText-2")
            panels[2].errorbar(
                [100 * row.ratio], [100 * row.value], [100 * row.spread], color=BLUE, marker=marker, ls="", capsize=3,
                label=f"the paper's, on {text}",
            )  # fmt: skip
        panels[2].axhline(100 * dense.value, color=GREY, linewidth=1, linestyle=":")
        panels[2].set_title("mean of five tasks: accuracy (%)")
        panels[2].legend(loc="lower left", fontsize=9)
        panels[2].set_ylim(bottom=36.5)
        for axes in panels:
            axes.set_xlabel("removed (% of the blocks)")
    return figure


def _against_ratio(axes: Axes, rows: Sequence[Row], scale: float, color: str, label: str) -> list[float]:
    """A line through the means at every ratio, with bars: over the draws, or of a single one its own error."""
    ratios = sorted({row.ratio for row in rows})
    found = [[row for row in rows if row.ratio == ratio] for ratio in ratios]
    points = [mean_and_spread(each) for each in found]
    values = [scale * value for value, _ in points]
    errors = [scale * spread for _, spread in points]
    axes.errorbar([100 * r for r in ratios], values, errors, color=color, marker=MARKER[color], capsize=3, label=label)
    return values
