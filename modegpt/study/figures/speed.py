"""Pictures of `modegpt bench compress`, `literal` and `scaling`."""

from itertools import chain, repeat

from matplotlib.figure import Figure

from modegpt.study.results import STEPS, Results, Row
from modegpt.style import BLUE, GREEN, GREY, MARKER, ORANGE, PINK, SKY, YELLOW, style

PAPER_MINUTES = {"llama-2-7b": 4 * 60 + 9, "llama-2-13b": 8 * 60 + 26}  # one A100, as the paper says
WORDS = ("forward pass", "Gram matrices", "MLP", "query-key", "value-output")


def compression(results: Results) -> Figure:
    """Seconds of whole compressions by step, and memory over time of the first of each model.

    Args:
        results: what `modegpt bench compress` saves, with a whole compression in it.
    """
    import matplotlib.pyplot as plt

    whole = whole_compressions(results)
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.2), width_ratios=(5, 4))
        names, limit = [], 1.9 * max(row.value for row in whole)
        for at, row in enumerate(whole):
            calibrate, decompose = _step(results, row, "calibrate"), _step(results, row, "decompose")
            left.barh(at, calibrate, color=SKY, label="calibrate" if not at else None)
            left.barh(at, decompose, left=calibrate, color=BLUE, label="decompose" if not at else None)
            paper = PAPER_MINUTES.get(row.model)
            beside = f"{row.value:.0f} s" + (f"   (the paper: {paper} min on an A100)" if paper else "")
            left.text(row.value + limit / 100, at, beside, va="center", fontsize=9)
            names.append(f"{row.model}\n{row.variant}")
        left.set_yticks(range(len(names)), names, fontsize=9)
        left.invert_yaxis()
        left.set_xlim(0, limit)
        left.set_xlabel(f"seconds, {results.device.removeprefix('cuda: ')}")
        left.set_title("From the first calibration token to the model")
        left.legend(loc="center right", fontsize=9)
        first: dict[str, Row] = {}
        for row in results.find(what="compression"):
            if row.details.get("memory"):  # a run of milliseconds has no trace
                first.setdefault(row.model, row)
        colors = chain((BLUE, ORANGE, GREEN, PINK, YELLOW, SKY), repeat(GREY))
        for row, color in zip(first.values(), colors, strict=False):
            seconds, used = zip(*row.details["memory"], strict=True)
            right.plot(
                seconds,
                [value / 2**30 for value in used],
                color=color,
                marker=MARKER[color],
                markevery=max(1, len(used) // 8),
                label=f"{row.model}, {row.variant}".replace(", streamed", ",\nstreamed"),
            )
        right.set_xlabel("seconds")
        right.set_ylabel("GiB in use")
        right.set_ylim(bottom=0)
        right.set_title("Memory falls as layers shrink")
        if right.lines:
            right.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def scaling(results: Results) -> Figure:
    """Speed-up against the number of GPUs, a line for each shape, beside the ideal.

    Args:
        results: what `modegpt bench scaling` saves, with a compression on at least two numbers of ranks.
    """
    import matplotlib.pyplot as plt

    seconds: dict[str, dict[int, float]] = {}
    for row in whole_compressions(results):
        seconds.setdefault(row.model, {})[int(row.variant.split()[0])] = row.value
    ranks = sorted({count for found in seconds.values() for count in found})
    with style():
        figure, axes = plt.subplots(figsize=(6.5, 4))
        axes.plot(ranks, [count / ranks[0] for count in ranks], "--", color=GREY, label="ideal")
        for (shape, found), color in zip(seconds.items(), (BLUE, ORANGE, GREEN, PINK), strict=False):
            first = found[min(found)]
            label = f"{shape}: {', '.join(f'{value:.1f} s' for value in found.values())}"
            axes.plot(
                list(found),
                [first / value for value in found.values()],
                "-",
                marker=MARKER[color],
                color=color,
                label=label,
            )
        axes.set_xticks(ranks)
        axes.set_xlabel(f"GPUs ({results.device.removeprefix('cuda: ')})")
        axes.set_ylabel("times as fast as on one")
        axes.set_title("One compression on several GPUs")
        axes.legend(fontsize=9)
    return figure


def whole_compressions(results: Results) -> list[Row]:
    """The rows of compressions that succeeded, and of all layers."""
    return [row for row in results.find(what="compression") if row.value and " of " not in row.variant]


def literal_steps(results: Results, shape: str) -> Figure:
    """Seconds of every step for one layer: the paper's text and this kit, on one axis.

    Args:
        results: what `modegpt bench literal` saves; shape: one that it holds.
    """
    import matplotlib.pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(8, 3.6))
        for at, step in enumerate(STEPS):
            found = {row.method: row for row in results.find(what=f"one layer: {step}", model=shape)}
            ours, literal = found["modegpt"].value, found["literal"].value
            axes.plot([ours, literal], [at, at], color=GREY, zorder=1)
            axes.plot(literal, at, "s", color=ORANGE, label="as the text has it" if not at else None)
            axes.plot(ours, at, "o", color=BLUE, label="this kit" if not at else None)
            if literal > 1.05 * ours:
                axes.annotate(f"  {literal / ours:.0f} times", (literal, at), va="center", fontsize=9)
        axes.set_xscale("log")
        axes.set_yticks(range(len(STEPS)), WORDS)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(f"seconds for one layer of {shape}, {results.device.removeprefix('cuda: ')}")
        axes.legend(fontsize=9)
    return figure


def _step(results: Results, whole: Row, step: str) -> float:
    (row,) = results.find(what=f"compression: {step}", model=whole.model, variant=whole.variant)
    return row.value
