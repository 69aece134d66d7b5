"""Figures of the lesson on the global allocation: what the signal is worth, who is cut, caps and rounding."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.allocate import LayerShape, Ranks
from modegpt.style import BLUE, GREEN, GREY, HEIGHT, MARKER, ORANGE, PINK, WIDTH, style


def signal(
    influence: Tensor, increase: Mapping[int, float], first: Tensor, median: Tensor, odd: int | None = None
) -> Figure:
    """Left: loss increase when a layer is dropped, against its Block Influence. Right: norms behind every layer.

    Args:
        influence: Block Influence of every layer, (layers,).
        increase: layer -> loss increase without it, in nats per token.
        first, median: norm of the residual stream behind every layer, of the first token and of the median one.
        odd: a layer to point at.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
        for layer, nats in increase.items():
            color, point = ORANGE if layer == odd else BLUE, (influence[layer].item(), nats)
            left.plot(*point, "o", color=color)
            left.annotate(str(layer), point, (0, 6), textcoords="offset points", ha="center", color=color)
        left.set(xscale="log", yscale="log", xlabel="Block Influence", ylabel="loss increase (nats per token)")
        left.margins(x=0.15, y=0.12)
        left.set_title("One layer dropped at a time")
        for values, color, words, shift in ((first, ORANGE, "first token", 7), (median, GREY, "median token", -22)):
            right.plot(range(len(values)), values, color=color)
            place = (len(values) * 0.55, values[len(values) // 2])
            right.annotate(words, place, (0, shift), textcoords="offset points", color=color)
        if odd is not None:
            right.axvline(odd, color=GREY, linewidth=1, linestyle=":")
            place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top"}
            right.annotate(f"layer {odd} ", (odd, 1), color=GREY, **place)
        right.set(yscale="log", xlabel="behind layer", ylabel="norm of the residual stream")
        right.set_ylim(top=2.5 * float(first.max()))
        right.set_title("One token out of hundreds")
    return figure


def allocations(influence: Tensor, sparsity: Mapping[float, Tensor], ratio: float) -> Figure:
    """Left: the sparsity of every layer at several temperatures. Right: the Block Influence they follow.

    Args:
        influence: Block Influence of every layer, (layers,).
        sparsity: temperature -> sparsity of every layer, (layers,).
        ratio: the mean of each of them.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), width_ratios=(1.5, 1))
        for (epsilon, phi), color in zip(sparsity.items(), (ORANGE, BLUE, GREEN, PINK, "black"), strict=False):
            left.plot(range(len(phi)), 100 * phi, color=color, marker=MARKER[color], markersize=3)
            left.annotate(f" ε = {epsilon:g}", (len(phi) - 1, 100 * phi[-1]), color=color, va="center")
        left.axhline(100 * ratio, color=GREY, linewidth=1, linestyle=":")
        left.annotate("mean", (len(influence) + 0.2, 100 * ratio), (0, 3), textcoords="offset points", color=GREY)
        left.set_xlim(-1, len(influence) + 4.5)
        left.set_ylim(bottom=-1)
        left.set_xticks(range(0, len(influence), 5))
        left.set(xlabel="layer", ylabel="removed from the layer (%)")
        left.set_title("A colder allocation spares the influential layers")
        right.plot(range(len(influence)), influence.tolist(), "o", color=GREY)
        for layer in influence.argsort(descending=True)[:4].tolist():
            place = (layer, influence[layer].item())
            right.annotate(str(layer), place, (0, 7), textcoords="offset points", ha="center", color=GREY)
        right.set(xlabel="layer", ylabel="Block Influence (log scale)", yscale="log")
        right.set_xticks(left.get_xticks())
        right.set_xlim(-1, len(influence))
        right.margins(y=0.12)
        right.set_title("The scores")
    return figure


def capped(raw: Tensor, clipped: Tensor, filled: Tensor, cap: float) -> Figure:
    """Three allocations, layers in order of falling raw sparsity: without a cap, clipped, and water-filled.

    Args:
        raw, clipped, filled: sparsity of every layer, (layers,).
        cap: the largest sparsity of one layer.
    """
    import matplotlib.pyplot as plt

    order = raw.argsort(descending=True)
    with style():
        figure, axes = plt.subplots(figsize=(0.85 * WIDTH, 0.85 * HEIGHT))
        axes.axhline(100 * cap, color=GREY, linewidth=1, linestyle=":")
        axes.annotate(
            "cap", (1, 100 * cap), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
        lines = (
            (raw, ORANGE, "--", "no cap"),
            (clipped, PINK, "-", "clipped"),
            (filled, BLUE, "-", "redistributed"),
        )
        for values, color, dashes, words in lines:
            label = f"{words}: mean {100 * values.mean().item():.1f} %"
            axes.plot(
                range(len(raw)),
                100 * values[order],
                dashes,
                color=color,
                marker=MARKER[color],
                markersize=3,
                label=label,
            )
        axes.set_xticks(range(len(raw)), [str(int(layer)) for layer in order], fontsize=8)
        axes.set(xlabel="layer, by falling sparsity", ylabel="removed from the layer (%)")
        axes.set_title("Clipping loses budget, redistribution gives it to the others")
        axes.legend(loc="lower left")
    return figure


def rounded(phi: Tensor, ranks: Sequence[Ranks], shape: LayerShape, multiple_of: int) -> Figure:
    """What every layer was asked to lose, and what its heads, its MLP and the whole layer lose after rounding.

    Args:
        phi: sparsity of every layer, (layers,).
        ranks: what the layers keep.
        shape: sizes of one layer.
        multiple_of: the granularity of the ranks, for the title.
    """
    import matplotlib.pyplot as plt

    lines = (
        ([1 - r.query_key / shape.query_key for r in ranks], ORANGE, "s", "", "heads (query-key, value-output)"),
        ([1 - r.mlp / shape.mlp for r in ranks], BLUE, "^", "", "MLP channels"),
        (
            [1 - shape.parameters(r.query_key, r.value, r.mlp) / shape.total for r in ranks],
            GREEN,
            "o",
            "",
            "layer after rounding",
        ),
        (phi.tolist(), GREY, "", "-", "layer as allocated"),
    )
    with style():
        figure, axes = plt.subplots(figsize=(0.85 * WIDTH, 0.85 * HEIGHT))
        for values, color, marker, dashes, words in lines:
            percent = [100 * value for value in values]
            axes.plot(range(len(phi)), percent, color=color, marker=marker, linestyle=dashes, markersize=5, label=words)
        axes.set(xlabel="layer", ylabel="removed (%)")
        axes.set_title(f"Multiples of {multiple_of}: the heads lose less, the MLP pays")
        axes.legend(loc="lower center", fontsize=9)
    return figure
