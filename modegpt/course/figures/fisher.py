"""The picture of notebook 10: what a task model keeps of its accuracy, by the weights of its rows."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREY, HEIGHT, MARKER, ORANGE, WIDTH, style


def task_accuracy(shares: Sequence[float], scores: Mapping[str, Sequence[float]], dense: float, most: float) -> Figure:
    """Accuracy on a task against the share of the ranks kept.

    Args:
        shares: of the full rank, ascending.
        scores: a method's name -> accuracy at each share; two methods.
        dense, most: accuracies of the whole model and of always saying the largest class.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.75 * WIDTH, 0.85 * HEIGHT))
        highest = max(values[-1] for values in scores.values())
        for (name, values), color in zip(scores.items(), (BLUE, ORANGE), strict=True):
            axes.plot([100 * x for x in shares], [100 * y for y in values], color=color, marker=MARKER[color])
            place = {"va": "bottom" if values[-1] == highest else "top", "textcoords": "offset points", "color": color}
            axes.annotate(name, (100 * shares[-1], 100 * values[-1]), (6, 0), **place)
        # where the rising lines are not: above the first share, and above the last
        for level, words, share in ((dense, "whole model", shares[0]), (most, "largest class", shares[-1])):
            axes.axhline(100 * level, color=GREY, lw=1, ls=":")
            place = {"ha": "center", "textcoords": "offset points", "color": GREY}
            axes.annotate(words, (100 * share, 100 * level), (0, 3), **place)
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel("share of the full rank kept (%)")
        axes.set_ylabel("accuracy on held-out texts (%)")
        axes.set_title("Rows that the loss feels, before any second training")
    return figure
