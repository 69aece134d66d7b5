"""The pictures of notebook 02: anisotropic activations, how many tokens a Gram matrix needs, error against size."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from modegpt.style import BLUE, GREEN, GREY, HEIGHT, ORANGE, PINK, WIDTH, style

OUTLIERS = 3  # dims named in the picture
CURVES = {  # color, marker, line
    "plain SVD of W_V": (ORANGE, "s", "-"),
    "plain SVD": (ORANGE, "s", "-"),
    "whitened W_V": (GREEN, "^", "-"),
    "whitened": (GREEN, "^", "-"),
    "whitened, best split": (GREEN, "v", "--"),
    "joint": (BLUE, "o", "-"),
    "joint, attention outputs": (PINK, "D", "-"),
}


def anisotropy(spectrum: Tensor, power: Tensor) -> Figure:
    """Left the eigenvalues of C, right the mean square of every input dim, both over their mean.

    Args:
        spectrum: eigenvalues of C, descending, (n,).
        power: diagonal of C, (n,).
    """
    import matplotlib.pyplot as plt

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), sharey=True)
        left.plot(range(1, len(spectrum) + 1), spectrum / spectrum.mean(), color=BLUE)
        left.set_xlabel("direction (sorted)")
        left.set_ylabel("mean square / average")
        left.set_title("A few directions carry most of it")
        relative = power / power.mean()
        right.scatter(range(len(power)), relative, s=7, color=GREY)
        loudest = sorted(relative.topk(OUTLIERS).indices.tolist())
        for index in loudest:
            right.scatter(index, relative[index], s=22, color=ORANGE)
            shift, side = (-6, "right") if index == loudest[0] else (6, "left")  # neighbors' names must not meet
            place = {"textcoords": "offset points", "ha": side, "va": "center", "color": ORANGE}
            right.annotate(f"dim {index}", (index, float(relative[index])), (shift, 0), **place)
        right.set_yscale("log")
        right.set_xlabel("input dim")
        right.set_title("A few dims tower over the others")
        for axes in (left, right):
            axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
        left.annotate("round activations", (1, 1), (-4, 4), ("axes fraction", "data"), "offset points", ha="right")
    return figure


def error_against_tokens(tokens: Sequence[int], fitted: Sequence[float], held_out: Sequence[float], n: int) -> Figure:
    """Relative output error against the number of calibration tokens, on those tokens and on others.

    Args:
        tokens: numbers of calibration tokens.
        fitted, held_out: relative output errors at each of them.
        n: number of inputs of the matrix; with fewer tokens C is singular.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(0.8 * WIDTH, HEIGHT))
        for errors, color, marker, label, shift in (
            (held_out, BLUE, "o", "held-out tokens", 10),
            (fitted, ORANGE, "s", "the calibration tokens", -36),
        ):
            axes.plot(tokens, errors, color=color, marker=marker)
            place = {"textcoords": "offset points", "ha": "right", "color": color}
            axes.annotate(label, (tokens[-1], errors[-1]), (4, shift), **place)
        axes.axvspan(tokens[0] * 0.9, n, color=GREY, alpha=0.12, linewidth=0)
        axes.annotate(
            f"C is singular:\nfewer tokens than {n} inputs",
            (n, 1),
            (-6, -4),
            ("data", "axes fraction"),
            "offset points",
            ha="right",
            va="top",
            color=GREY,
        )
        axes.set_xscale("log")
        axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
        axes.minorticks_off()
        axes.set_xlim(tokens[0] * 0.9, tokens[-1] * 1.1)
        axes.set_ylim(0, 1.25 * max(*fitted, *held_out))
        axes.set_xlabel("calibration tokens")
        axes.set_ylabel("relative output error")
        axes.set_title("Few tokens flatter the fit; ten for each input close most of the gap")
    return figure


def error_against_share(
    shares: Sequence[float], before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]
) -> Figure:
    """Relative held-out output error of a value-output module against the share of its parameters that is kept.

    Args:
        shares: kept shares of the module's parameters, in (0, 1).
        before: method -> errors of every head's own map, before attention mixes tokens.
        after: method -> errors of the module's output, attention included. Methods are keys of `CURVES`.
    """
    import matplotlib.pyplot as plt

    percent = [100 * share for share in shares]
    with style():
        figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 1.15 * HEIGHT), sharey=True)
        titles = ("Same shapes, before attention mixes", "Same parameters, the module's output")
        for axes, errors, title in zip(panels, (before, after), titles, strict=True):
            for method, values in errors.items():
                color, marker, line = CURVES[method]
                axes.plot(percent, values, color=color, marker=marker, linestyle=line, markersize=5, label=method)
            axes.set_xlabel("parameters kept of the module (%)")
            axes.set_title(title)
            axes.set_ylim(0, 1)
            axes.legend(loc="lower left", fontsize=10)
        panels[0].set_ylabel("relative output error (held-out tokens)")
    return figure
