"""The picture of notebook 14: size, perplexity and speed, from the dense model to a small one, quantized."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREY, HEIGHT, ORANGE, WIDTH, log_ticks, style


def road(stations: Mapping[str, tuple[float, float, float | None]]) -> Figure:
    """Perplexity against size on disk, a point a station in the order of the road, with the speed where it is known.

    Args:
        stations: name -> (megabytes, perplexity, tokens per second of decoding or None).
    """
    import matplotlib.pyplot as plt

    sizes, found, _ = zip(*stations.values(), strict=True)
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 1.1 * HEIGHT))
        axes.plot(sizes, found, color=GREY, linewidth=1, linestyle=":")
        for name, (size, perplexity, speed) in stations.items():
            axes.plot(size, perplexity, "o", color=ORANGE if speed else BLUE)
            words = f"{name}: {speed:.0f} tokens/s" if speed else name
            axes.annotate(words, (size, perplexity), (8, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yscale("log")
        log_ticks(axes, found)
        axes.margins(0.2, 0.15)
        axes.set_xlabel("size on disk (MB)")
        axes.set_ylabel("perplexity")
        axes.set_title("the road to a model that other programs run")
    return figure
