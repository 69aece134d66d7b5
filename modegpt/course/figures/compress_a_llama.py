"""The pictures of notebook 07: what a smaller Llama costs, and which layers paid."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from modegpt.allocate import MODULES, Ranks
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, WIDTH, log_ticks, style


def perplexity_spread(ratios: Sequence[float], by_seed: Mapping[int, Sequence[float]], dense: float) -> Figure:
    """Perplexity against ratio: a point for every calibration seed, a line through the geometric means.

    Args:
        ratios: shares of the block parameters removed, ascending, without 0.
        by_seed: seed -> perplexity at each ratio.
        dense: perplexity of the dense model on the same windows.
    """
    import matplotlib.pyplot as plt

    columns = list(zip(*by_seed.values(), strict=True))
    means = [math.exp(sum(map(math.log, column)) / len(column)) for column in columns]
    x = [0.0, *(100 * ratio for ratio in ratios)]
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        axes.plot(x, [dense, *means], color=BLUE, zorder=1)
        for place, values in enumerate(by_seed.values()):  # side by side, or they would hide each other
            shift = 1.2 * (place - (len(by_seed) - 1) / 2)
            axes.plot([at + shift for at in x[1:]], values, "o", color=ORANGE, markersize=5, zorder=2)
        axes.plot(0, dense, "o", color=BLUE, markersize=7)
        for at, value in zip(x, [dense, *means], strict=True):
            side = {"xytext": (-9, 7), "ha": "right"} if at else {"xytext": (0, 10), "ha": "center"}
            axes.annotate(f"{value:.3g}", (at, value), textcoords="offset points", **side)
        for at, column in zip(x[1:], columns, strict=True):
            words = f"{min(column):.3g} to {max(column):.3g}"
            place = {"xytext": (0, -11), "textcoords": "offset points", "ha": "center", "va": "top", "size": 9}
            axes.annotate(words, (at, min(column)), color=ORANGE, **place)
        label = {"xytext": (36, -11), "textcoords": "offset points", "color": ORANGE, "va": "top", "size": 9}
        axes.annotate("(one point per calibration seed)", (x[-2], min(columns[-2])), **label)
        axes.set_yscale("log")
        log_ticks(axes, [dense, *(value for column in columns for value in column)])
        axes.margins(x=0.1, y=0.16)
        axes.set_xlabel("block parameters removed (%)")
        axes.set_ylabel("perplexity (log scale)")
        axes.set_title("The ratio moves perplexity far more than the calibration seed does")
    return figure


def ranks_per_layer(ranks: Sequence[Ranks], full: Ranks, influence: Sequence[float]) -> Figure:
    """What each layer keeps of its three modules, above the Block Influence that decided it.

    Args:
        ranks: what every layer keeps.
        full: the sizes before.
        influence: Block Influence of every layer.
    """
    import matplotlib.pyplot as plt

    names = {"query_key": "query-key", "value": "value-output", "mlp": "MLP"}
    layers = range(len(ranks))
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), width_ratios=(3, 2))
        kept = {m: [100 * getattr(r, m) / getattr(full, m) for r in ranks] for m in MODULES}
        same = kept["query_key"] == kept["value"]
        if same:  # one line for the two
            names["query_key"] = "query-key and value-output"
            names.pop("value")
        for module, color in zip(MODULES, (GREEN, ORANGE, BLUE), strict=True):
            if module in names:
                left.step(
                    layers, kept[module], where="mid", color=color, marker=MARKER[color], ms=4, label=names[module]
                )
        left.legend(loc="lower right")
        left.set_ylim(0, 105)
        left.set_xlabel("layer")
        left.set_ylabel("kept (% of the dims or channels)")
        left.set_title("The ranks that every layer keeps")
        right.bar(layers, influence, color=GREY)
        right.set_xlabel("layer")
        right.set_ylabel("Block Influence")
        right.set_title("Decided by Block Influence")
    return figure


def window_losses(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Mean loss of every evaluation window under several models, one line a window.

    Args:
        losses: model's name -> nats per token of each window, the same windows in the same order.
    """
    import matplotlib.pyplot as plt

    names = list(losses)
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        for values in zip(*losses.values(), strict=True):
            axes.plot(range(len(names)), values, marker="o", color=BLUE, alpha=0.75)
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.12)
        axes.set_ylabel("loss (nats per token)")
        axes.set_title("Windows differ in difficulty; compression lifts each of them")
    return figure
