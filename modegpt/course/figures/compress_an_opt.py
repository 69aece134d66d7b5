"""The pictures of notebook 08: which channels of a plain MLP ever fire, and what a smaller OPT costs."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, SKY, WIDTH, log_ticks, style

MARKS = {"through the origin": (BLUE, "o", -0.8), "with an intercept": (ORANGE, "^", 0.8)}  # and a shift in percent


def firing_channels(silent: Sequence[int], rare: Sequence[int], kept: Sequence[int], channels: int) -> Figure:
    """How many channels of every layer never fire, seldom fire, and fire; a mark at what a compressed layer keeps.

    Args:
        silent: channels of each layer that fired for no token.
        rare: channels that fired, but for fewer than one token in a hundred.
        kept: number of channels that each layer keeps.
        channels: of each layer.
    """
    import matplotlib.pyplot as plt

    layers = range(len(silent))
    often = [channels - none - few for none, few in zip(silent, rare, strict=True)]
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        axes.bar(layers, often, color=BLUE, label="fires for 1 token in 100 or more")
        axes.bar(layers, rare, bottom=often, color=SKY, label="fires for fewer")
        axes.bar(
            layers,
            silent,
            bottom=[channels - none for none in silent],
            color=GREY,
            alpha=0.5,
            label="silent in calibration",
        )
        axes.hlines(kept, [i - 0.4 for i in layers], [i + 0.4 for i in layers], color=ORANGE, lw=3, label="kept")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)
        axes.set_xticks(layers)
        axes.set_xlabel("layer")
        axes.set_ylabel("MLP channels")
        axes.set_title("How many channels ever work, and how many are kept")
    return figure


def selection_errors(ranks: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Share of the attention logits' mean square that a selection of query-key dims loses, keys centred.

    Args:
        ranks: dims kept per head, ascending.
        errors: how the dims were chosen -> share lost at each of `ranks`.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 0.85 * HEIGHT))
        for (name, values), color in zip(errors.items(), (BLUE, ORANGE, GREEN, "black"), strict=False):
            axes.plot(ranks, [100 * value for value in values], "-", marker=MARKER[color], color=color, label=name)
        axes.legend()
        axes.set_ylim(bottom=0)
        axes.set_xticks(ranks)
        axes.set_xlabel("query-key dims kept per head")
        axes.set_ylabel("lost of the centred logits (%)")
        axes.set_title("Mean square of the attention logits: pairs, dims, a subspace")
    return figure


def perplexity_spread(
    ratios: Sequence[float], by_way: Mapping[str, Mapping[int, Sequence[float]]], dense: float
) -> Figure:
    """Perplexity against ratio for both regressions: a point for every calibration seed, lines through their means.

    Args:
        ratios: shares of the block parameters removed, ascending, without 0.
        by_way: a name of MARKS -> seed -> perplexity at each ratio.
        dense: perplexity of the dense model on the same windows.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        for name, by_seed in by_way.items():
            color, mark, shift = MARKS[name]
            columns = list(zip(*by_seed.values(), strict=True))
            means = [math.exp(sum(map(math.log, column)) / len(column)) for column in columns]
            axes.plot([0, *(100 * ratio for ratio in ratios)], [dense, *means], color=color, lw=1.2, label=name)
            for values in by_seed.values():
                places = [100 * ratio + shift for ratio in ratios]
                axes.plot(places, values, mark, color=color, markersize=5, alpha=0.75)
            if name == next(iter(by_way)):
                for ratio, mean, column in zip(ratios, means, columns, strict=True):
                    words = f"{mean:.3g}\n({min(column):.3g} to {max(column):.3g})"
                    shift, side = ((-10, 8), "bottom") if mean > dense else ((-10, -8), "top")
                    place = {"xytext": shift, "textcoords": "offset points", "ha": "right", "va": side, "size": 10}
                    axes.annotate(words, (100 * ratio, mean), color=color, **place)
        axes.axhline(dense, color=GREY, lw=1, ls=":")
        axes.annotate(f"dense {dense:.3g}", (0, dense), xytext=(0, 6), textcoords="offset points", color=GREY)
        axes.set_yscale("log")
        every = [value for by_seed in by_way.values() for values in by_seed.values() for value in values]
        log_ticks(axes, [dense, *every])
        axes.margins(x=0.06, y=0.22)
        axes.legend(title="the MLP's regression; a point is a calibration seed")
        axes.set_xlabel("block parameters removed (%)")
        axes.set_ylabel("perplexity (log scale)")
        axes.set_title("What a smaller OPT pays, with and without an intercept")
    return figure
