"""The pictures of notebook 11: what row weights measure, what they are worth, and every method on two models."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.study.figures.results import METHOD_STYLES, draw_methods
from modegpt.study.results import Results
from modegpt.style import BLUE, GREY, HEIGHT, ORANGE, WIDTH, log_ticks, style


def weights_against_power(power: Tensor, weights: Mapping[str, Tensor]) -> Figure:
    """Row weights against the mean square of the input that they belong to, all over their means, log scales.

    A panel for each source of weights.

    Args:
        power: mean square of every input, (in,).
        weights: where the weights come from -> (in,), two.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(
            1, len(weights), figsize=(0.85 * WIDTH, 0.8 * HEIGHT), sharex=True, sharey=True, squeeze=False
        )
        for axes, (name, values), color in zip(panels[0], weights.items(), (BLUE, ORANGE), strict=True):
            alive = (power > 0) & (values > 0)
            x, y = ((t / t.mean())[alive].tolist() for t in (power, values))
            axes.plot(x, y, ".", color=color, markersize=2, antialiased=False)
            axes.axline((1, 1), (10, 10), color=GREY, lw=1, ls=":", label="in proportion")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.set_title(name)
        panels[0, 0].set_ylabel("row weight, over the mean")
        panels[0, 0].legend(loc="upper left")
        figure.supxlabel("mean square of the input, over the mean", fontsize="medium")
        figure.suptitle("A row weight mostly says how loud its input is")
    return figure


def module_errors(shares: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of an MLP's output against the share of its numbers that is kept.

    Args:
        shares: share of the two matrices' numbers kept, ascending.
        errors: a method's name as in METHOD_STYLES -> error at each share.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.75 * WIDTH, 0.85 * HEIGHT))
        for name, values in errors.items():
            color, marker, label = METHOD_STYLES[name]
            axes.plot([100 * share for share in shares], values, color=color, marker=marker, label=label)
        axes.set_yscale("log")
        log_ticks(axes, [value for values in errors.values() for value in values])
        axes.set_xticks([100 * share for share in shares])
        axes.set_xlabel("numbers of the MLP kept (%)")
        axes.set_ylabel("relative output error, held out")
        axes.set_title("Row weights help, whitening helps more, a pair most")
        axes.legend()
    return figure


def methods_on_two_models(left: Results, right: Results) -> Figure:
    """Every method's perplexity against the parameters left, a panel for each model; see `draw_methods`."""
    import matplotlib.pyplot as plt

    with style():
        figure, panels = plt.subplots(1, 2, figsize=(1.15 * WIDTH, HEIGHT))
        for axes, results in zip(panels, (left, right), strict=True):
            draw_methods(axes, results)
            axes.set_title(f"{results.settings['model']} on {results.settings['text']}")
        lines = [line for axes in panels for line in axes.get_legend_handles_labels()[0]]
        names = {marker: label for _, marker, label in METHOD_STYLES.values()}
        drawn = {names[line.get_marker()]: line for line in lines}  # once for both panels
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4)
    return figure
