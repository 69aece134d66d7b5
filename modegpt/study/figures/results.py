"""The plots of whole runs, drawn from saved results only."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modegpt.study.results import Results
from modegpt.style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, STYLE, YELLOW, log_ticks


def perplexity_against_ratio(results: Results) -> Figure:
    """Perplexity and size of one model at every ratio, and which layers paid for it.

    Args:
        results: what `modegpt.study.ratios` saves: perplexities, dense first, with parameters and sparsity (one value a
            layer, empty for the dense model) in their details.
    """
    import matplotlib.pyplot as plt

    rows = results.rows
    ratios = [100 * row.ratio for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
        errors = [row.spread or 0 for row in rows]  # none for a single window
        left.errorbar(ratios, [row.value for row in rows], yerr=errors, color=BLUE, marker="o", capsize=3)
        for x, row in zip(ratios, rows, strict=True):
            label = f"{row.value:.1f}\n{row.details['parameters'] / 1e6:.0f} M"
            left.annotate(label, (x, row.value), xytext=(-6, 8), textcoords="offset points", ha="right", size=9)
        left.set_yscale("log")
        log_ticks(left, [row.value for row in rows])
        left.margins(x=0.12, y=0.16)
        left.set_xlabel("block parameters removed (%)")
        left.set_ylabel(f"perplexity on {results.settings['text']}")
        left.set_title(f"{results.settings['model']}: what a smaller model costs", loc="left", size=12)

        compressed = [row for row in rows if row.details["sparsity"]]
        for shade, row in zip(_shades(len(compressed)), compressed, strict=True):
            sparsity = [100 * phi for phi in row.details["sparsity"]]
            right.plot(range(len(sparsity)), sparsity, color=shade)
            right.annotate(f" {row.ratio:.0%}", (len(sparsity) - 1, sparsity[-1]), color=shade, va="center")
        right.set_xlabel("layer")
        right.set_ylabel("removed from the layer (%)")
        right.set_ylim(bottom=0)
        right.set_title("who pays: global sparsity allocation", loc="left", size=12)
    return figure


METHOD_STYLES = {  # MoDeGPT in front
    "modegpt-plus": ("black", "*", "modegpt-plus (ours)"),
    "modegpt": (BLUE, "o", "MoDeGPT"),
    "slicegpt": (GREEN, "s", "SliceGPT"),
    "svd-llm": (ORANGE, "D", "SVD-LLM (whitening)"),
    "fwsvd": (PINK, "^", "FWSVD"),
    "fwsvd-shifted": (PINK, "v", "FWSVD, labels shifted twice"),
    "svd": (YELLOW, "P", "SVD"),
    "shortgpt": (SKY, "X", "ShortGPT"),
    "magnitude": (GREY, "h", "magnitude"),
}


OFF_SCALE = 100  # times the dense perplexity: nothing is left of the language


def perplexity_against_parameters(results: Results) -> Figure:
    """Every method's perplexity against the parameters that are left of the whole model; see `draw_methods`."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9.5, 4.8), layout="constrained")
        draw_methods(axes, results)
        axes.set_title(
            f"{results.settings['model']}: what each method makes of the same calibration", loc="left", size=12
        )
        figure.legend(frameon=False, loc="outside right center")
    return figure


def draw_methods(axes: Axes, results: Results) -> None:
    """A line a method: perplexity, on a log scale, against the parameters that are left of the whole model.

    What is more than a hundred times the dense perplexity leaves the frame; the legend then says how bad it is.

    Args:
        results: what `modegpt compare` saves: perplexities with parameters in their details. A method of the user's
            own is drawn in black.
    """
    rows = [row for row in results.rows if row.value is not None]
    dense = next(row for row in rows if row.method == "dense")
    limit = OFF_SCALE * dense.value
    others = dict.fromkeys(row.method for row in rows if row.method not in (dense.method, *METHOD_STYLES))
    styles = METHOD_STYLES | {
        name: ("black", marker, name) for name, marker in zip(others, cycle("d<>8p"), strict=False)
    }
    for method, (color, marker, label) in styles.items():
        mine = sorted((row for row in rows if row.method == method), key=lambda row: -row.details["parameters"])
        if not mine:
            continue
        best = min(row.value for row in mine)
        # a sliced model whose embeddings were untied may be larger than the dense one
        points = [dense, *mine] if mine[0].details["parameters"] < dense.details["parameters"] else mine
        axes.plot(
            [row.details["parameters"] / 1e6 for row in points],
            [row.value for row in points],
            color=color,
            marker=marker,
            label=f"{label} ({best:.0e} and more)" if best > limit else label,
            linestyle="--" if method == "fwsvd-shifted" else "-",
            zorder=3 if method.startswith("modegpt") else 2,
        )
    level = dense.value
    axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "color": GREY}
    axes.annotate(f"dense {level:.1f}", (1, level), xytext=(0, 3), **place)
    axes.set_yscale("log")
    log_ticks(axes, [row.value for row in rows if row.value <= limit])
    axes.set_ylim(0.85 * level, min(1.3 * max(row.value for row in rows), limit))
    axes.invert_xaxis()
    axes.set_xlabel("parameters left (millions, whole model)")
    axes.set_ylabel(f"perplexity on {results.settings['text']}")


def accuracy_on_tasks(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """FWSVD, SVD and MoDeGPT on tasks: accuracy against parameters, before and after a second fine-tuning.

    A row of panels for each model, a panel for each task; bars are the standard deviation over the seeds.

    Args:
        lines: `modegpt.study.fwsvd_task.summary` of the part "ranks".
    """
    import matplotlib.pyplot as plt

    models, tasks = (list(dict.fromkeys(line[name] for line in lines)) for name in ("model", "data"))
    size = {"figsize": (3.6 * len(tasks), 3 * len(models) + 0.6), "layout": "constrained", "squeeze": False}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(len(models), len(tasks), sharey="row", **size)
        for model, row in zip(models, panels, strict=True):
            for task, axes in zip(tasks, row, strict=True):
                mine = [line for line in lines if (line["model"], line["data"]) == (model, task)]
                _draw_task(axes, [line for line in mine if not line["variant"].startswith("weights of")])
                axes.set_title(f"{model}, {task}", loc="left", size=11)
            row[0].set_ylabel("accuracy (%)")
            row[0].set_ylim(0, 1.1 * max(axes.dataLim.ymax for axes in row))  # room for the words above a line
        for axes in panels[-1]:
            axes.set_xlabel("parameters (millions)")
        drawn = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_task(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for method in ("svd", "fwsvd", "modegpt"):
        color, marker, label = METHOD_STYLES[method]
        for when, style, words in (("before", "-", ""), ("after", ":", ", fine-tuned again")):
            mine = sorted((x for x in lines if x["method"] == method and when in x), key=lambda x: x["parameters"])
            axes.errorbar(
                [line["parameters"] / 1e6 for line in mine],
                [100 * line[when]["mean"] for line in mine],
                yerr=[100 * line[when]["spread"] for line in mine],
                color=color,
                linestyle=style,
                marker=marker,
                markerfacecolor="white" if when == "after" else color,
                capsize=2,
                label=label + words,
            )
    for line in lines:
        if line["method"] == "dense":
            level = 100 * line["before"]["mean"]
            axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "color": GREY}
            axes.annotate("whole model", (0.01, level), xytext=(0, 3), size=9, **place)


def training_curve(facts: Mapping[str, Any]) -> Figure:
    """The loss of a small model as it was trained.

    Args:
        facts: its training.json: `curve` with step, loss and held_out_loss in nats per token, and `settings`.
    """
    import matplotlib.pyplot as plt

    curve = facts["curve"]
    seen = [point["step"] / curve[-1]["step"] * facts["tokens_seen"] / 1e6 for point in curve]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for key, color, words, shift in (("loss", BLUE, "training", -14), ("held_out_loss", ORANGE, "held out", 6)):
            axes.plot(seen, [point[key] for point in curve], color=color)
            label = f"{words} {curve[-1][key]:.2f}"
            axes.annotate(
                label, (seen[-1], curve[-1][key]), (0, shift), textcoords="offset points", ha="right", color=color
            )
        axes.set_ylim(1, 6)
        axes.set_xlabel("tokens seen (millions)")
        axes.set_ylabel("loss (nats per token)")
        axes.set_title(
            f"{facts['settings'].get('architecture', 'opt')}-mini learns from what SmolLM2 wrote", loc="left", size=12
        )
    return figure


def _shades(count: int) -> list[tuple[float, float, float]]:
    """From grey to orange, one shade a ratio."""
    from matplotlib.colors import to_rgb

    start, end = to_rgb(GREY), to_rgb(ORANGE)
    steps = [index / max(count - 1, 1) for index in range(count)]
    return [tuple(a + (b - a) * t for a, b in zip(start, end, strict=True)) for t in steps]
