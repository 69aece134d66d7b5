"""The picture of notebook 14: size, perplexity and speed, from the dense model to a small one, quantized."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from modegpt.style import BLUE, GREY, HEIGHT, ORANGE, WIDTH, log_ticks, style


def road(stations: Mapping[str, tuple[float, float, float | None]]) -> Figure:
    """Perplexity against size on disk, a point a station, with the speed where it is known.

    A dotted line leads along the stations, and from each to the same one quantized.

    Args:
        stations: name -> (megabytes, perplexity, tokens per second of decoding or None).
            "NAME, Q8_0" is NAME quantized.
    """
    import matplotlib.pyplot as plt

    found = [perplexity for _, perplexity, _ in stations.values()]
    roads = [[name for name in stations if not name.endswith(", Q8_0")]]
    roads += [[name, quantized] for name in roads[0] if (quantized := f"{name}, Q8_0") in stations]
    with style():
        figure, axes = plt.subplots(figsize=(WIDTH, 1.1 * HEIGHT))
        for names in roads:
            sizes, losses, _ = zip(*(stations[name] for name in names), strict=True)
            axes.plot(sizes, losses, color=GREY, linewidth=1, linestyle=":")
        for name, (size, perplexity, speed) in stations.items():
            axes.plot(size, perplexity, "o", color=ORANGE if speed else BLUE)
            words = f"{name}: {speed:.0f} tokens/s" if speed else name
            axes.annotate(words, (size, perplexity), (0, 7), textcoords="offset points", fontsize=9)
        axes.set_yscale("log")
        log_ticks(axes, found)
        axes.margins(0.2, 0.15)
        axes.set_xlabel("size on disk (MB)")
        axes.set_ylabel("perplexity")
        axes.set_title("the road to a model that other programs run")
    return figure
