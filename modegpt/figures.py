"""Every plot of the kit, drawn from saved results only."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"  # Okabe and Ito: safe for colour-blind readers
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 120}


def perplexity_against_ratio(results: Mapping[str, Any]) -> Figure:
    """Perplexity and size of one model at every ratio, and which layers paid for it.

    Args:
        results: what `modegpt.reproduce` saves: `rows` with ratio, perplexity, standard_error, parameters and
            sparsity (one value a layer, empty for the dense model), dense first.
    """
    import matplotlib.pyplot as plt

    rows = results["rows"]
    ratios = [100 * row["requested_ratio"] for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
        errors = [row["standard_error"] or 0 for row in rows]  # null for a single window
        left.errorbar(ratios, [row["perplexity"] for row in rows], yerr=errors, color=BLUE, marker="o", capsize=3)
        for x, row in zip(ratios, rows, strict=True):
            label = f"{row['perplexity']:.1f}\n{row['parameters'] / 1e6:.0f} M"
            left.annotate(label, (x, row["perplexity"]), xytext=(-6, 8), textcoords="offset points", ha="right", size=9)
        left.set_yscale("log")
        left.set_yticks(ticks := [20, 30, 50, 100, 200], [str(tick) for tick in ticks])
        left.minorticks_off()
        left.margins(x=0.12, y=0.16)
        left.set_xlabel("block parameters removed (%)")
        left.set_ylabel(f"perplexity on {results['text']}")
        left.set_title(f"{results['model']}: what a smaller model costs", loc="left", size=12)

        compressed = [row for row in rows if row["sparsity"]]
        for shade, row in zip(_shades(len(compressed)), compressed, strict=True):
            layers = range(len(row["sparsity"]))
            right.plot(layers, [100 * phi for phi in row["sparsity"]], color=shade)
            right.annotate(
                f" {row['requested_ratio']:.0%}", (layers[-1], 100 * row["sparsity"][-1]), color=shade, va="center"
            )
        right.set_xlabel("layer")
        right.set_ylabel("removed from the layer (%)")
        right.set_ylim(bottom=0)
        right.set_title("who pays: global sparsity allocation", loc="left", size=12)
    return figure


def _shades(count: int) -> list[tuple[float, float, float]]:
    """From grey to orange, one shade a ratio."""
    from matplotlib.colors import to_rgb

    start, end = to_rgb(GREY), to_rgb(ORANGE)
    steps = [index / max(count - 1, 1) for index in range(count)]
    return [tuple(a + (b - a) * t for a, b in zip(start, end, strict=True)) for t in steps]
