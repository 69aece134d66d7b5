"""The pictures of notebook 10: what row weights are worth, what they measure, and every method on two models."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.figures.results import METHOD_STYLES, draw_methods, log_ticks
from modegpt.figures.style import BLUE, GREY, HEIGHT, ORANGE, WIDTH, style
from modegpt.results import Results


def perplexity_by_weights(found: Mapping[str, float], dense: float, seen: Sequence[str] = ()) -> Figure:
    """A dot for every choice of row weights, the largest perplexity on top.

    Args:
        found: where the weights come from -> perplexity, all at the same size.
        dense: perplexity of the dense model on the same windows.
        seen: those of `found` that are the method as it is meant; they are filled, the controls are hollow.
    """
    import matplotlib.pyplot as plt

    ordered = sorted(found.items(), key=lambda entry: entry[1])
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.5 + 0.42 * len(ordered)))
        for height, (name, value) in enumerate(ordered):
            face = BLUE if name in seen else "white"
            axes.plot([value], [height], "o", color=BLUE, markerfacecolor=face, markersize=8)
            axes.annotate(f"{value:.4g}", (value, height), (9, -4), textcoords="offset points", color=BLUE)
        axes.axvline(dense, color=GREY, lw=1, ls=":")
        axes.annotate(f" dense {dense:.3g}", (dense, len(ordered) - 1), color=GREY, va="center")
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.margins(x=0.12, y=0.08)
        axes.set_xlabel("perplexity, all at the same size")
        axes.set_title("Where the row weights come from hardly matters; that there are some does")
    return figure


def weights_against_power(power: Tensor, weights: Mapping[str, Tensor]) -> Figure:
    """Row weights against the mean square of the input that they belong to, both over their means, log scales.

    Args:
        power: mean square of every input, (in,).
        weights: where the weights come from -> (in,), each in a panel of its own.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(1, len(weights), figsize=(WIDTH, HEIGHT), sharey=True, squeeze=False)
        for axes, (name, values), color in zip(panels[0], weights.items(), (BLUE, ORANGE), strict=False):
            alive = (power > 0) & (values > 0)
            x, y = ((t / t.mean())[alive].tolist() for t in (power, values))
            axes.plot(x, y, ".", color=color, markersize=3, alpha=0.6)
            axes.axline((1, 1), (10, 10), color=GREY, lw=1, ls=":")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("mean square of the input, over the mean")
            axes.set_title(name)
        panels[0][0].set_ylabel("row weight, over the mean")
    return figure


def module_errors(shares: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of an MLP's output against the share of its numbers that is kept.

    Args:
        shares: share of the two matrices' numbers kept, ascending.
        errors: a method's name as in METHOD_STYLES -> error at each share.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        for name, values in errors.items():
            color, marker, label = METHOD_STYLES[name]
            axes.plot([100 * share for share in shares], values, color=color, marker=marker, label=label)
        axes.set_yscale("log")
        log_ticks(axes, [value for values in errors.values() for value in values])
        axes.set_xticks([100 * share for share in shares])
        axes.set_xlabel("numbers of the MLP kept (%)")
        axes.set_ylabel("output error, held out (log scale)")
        axes.set_title("The MLP's output: row weights help, whitening helps more, a pair most")
        axes.legend()
    return figure


def methods_on_two_models(left: Results, right: Results) -> Figure:
    """Every method's perplexity against the parameters left, a panel for each model; see `draw_methods`."""
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(1, 2, figsize=(1.35 * WIDTH, 1.15 * HEIGHT))
        for axes, results in zip(panels, (left, right), strict=True):
            draw_methods(axes, results)
            axes.set_title(f"{results.settings['model']} on {results.settings['text']}")
        handles, _ = panels[0].get_legend_handles_labels()
        known = {line.get_marker() for line in handles}
        handles += [line for line in panels[1].get_legend_handles_labels()[0] if line.get_marker() not in known]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
