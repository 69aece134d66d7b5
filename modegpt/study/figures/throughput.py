"""The picture of `modegpt bench throughput`: tokens per second against ratio, and what the rounding of ranks costs."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modegpt.study.results import DENSE, Results, Row
from modegpt.style import BLUE, GREEN, GREY, MARKER, ORANGE, style

PAPER = 1.46  # "up to": its text names neither model nor ratio where we could read it; on A100s
LOOKS = {  # mode -> colour, marker, words
    "compiled": (GREEN, "s", "torch.compile"),
    "compiled graph": (GREEN, "s", "torch.compile, CUDA graph"),
    "graph": (BLUE, "o", "CUDA graph"),
    "eager": (ORANGE, "^", "eager"),
}


def throughput_against_ratio(results: Results, *others: Results, prefill_batch: int, decode_batch: int = 1) -> Figure:
    """Speed-up over the dense model against ratio, measured beside allowed, and the sweep over `multiple_of`.

    Decoding launched kernel by kernel is given in words: the processor sets its pace, whatever the ratio.

    Args:
        results: what `modegpt bench throughput` saves.
        others: more of them, of the same kind of machine; a line is drawn from the run that has most of it.
        prefill_batch: prompts together in the left panel.
        decode_batch: sequences decoded together in the middle panel.
    """
    import matplotlib.pyplot as plt

    layers = max(row.details["layers"] for row in results.rows if "layers" in row.details)
    prompt, context = results.settings["prompt"], results.settings["context"]
    with style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.6), width_ratios=(4, 4, 3))
        for axes, phase, batch, tokens in (
            (left, "prefill", prefill_batch, prompt),
            (middle, "decode", decode_batch, context),
        ):
            case = {"batch": batch, "tokens": tokens, "layers": layers}
            runs = [
                [row for row in run.find(what=phase) if row.details | case == row.details and row.value and plain(row)]
                for run in (results, *others)
            ]
            _measured_beside_allowed(axes, runs, [m for m in LOOKS if phase == "prefill" or m != "eager"])
            launched = [row.value for rows in runs for row in rows if row.details["mode"] == "eager"]
            if phase == "decode" and launched:
                words = f"launched kernel by kernel: {min(launched):.0f} to {max(launched):.0f} tokens/s"
                axes.annotate(words, (0.03, 0.02), xycoords="axes fraction", color=GREY, size=9)
        left.set_title(f"Prefill, {prefill_batch} x {prompt:,} tokens")
        middle.set_title(f"Decoding, batch {decode_batch}, after {context:,} tokens")
        left.set_ylabel("tokens/s, times those of the dense model")
        _sweep(right, [row for row in results.rows if row.details.get("layers") == results.settings["sweep_layers"]])
    return figure


def plain(row: Row) -> bool:
    """Whether its sizes are uniform and its model is not fused."""
    return not (row.details.get("like") or row.details.get("fused"))


def _measured_beside_allowed(axes: Axes, runs: Sequence[Sequence[Row]], modes: Iterable[str]) -> None:
    """A line for every mode, and the bound, whose points are the same for all modes."""
    allowed: Mapping[float, float] = {
        row.ratio: row.details["allowed"] for rows in runs for row in rows if "allowed" in row.details
    }
    points = [(0.0, 1.0), *sorted(allowed.items())]
    axes.plot(
        [100 * r for r, _ in points], [a for _, a in points], "--", color=GREY, label="allowed by what is removed"
    )
    for mode in modes:
        color, marker, words = LOOKS[mode]
        of_runs = ([row for row in rows if row.details["mode"] == mode] for rows in runs)
        mine = sorted(max(of_runs, key=len), key=lambda row: row.ratio)
        if not mine or mine[0].method != DENSE:
            continue
        dense = mine[0].value
        axes.errorbar(
            [100 * row.ratio for row in mine],
            [row.value / dense for row in mine],
            yerr=[row.spread / dense for row in mine],
            color=color,
            marker=marker,
            capsize=3,
            label=f"{words}: dense {dense:,.0f} tokens/s",
        )
    axes.axhline(PAPER, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate("the paper's best, +46 %", (0, PAPER), xytext=(0, 3), textcoords="offset points", color=GREY, size=9)
    axes.set_ylim(0.9, 1.3 * max(allowed.values(), default=1))
    axes.set_xlabel("block parameters removed (%)")
    axes.legend(loc="upper left", fontsize=9)


def _sweep(axes: Axes, rows: Iterable[Row]) -> None:
    """Speed-up at every `multiple_of`, a group of points for each, one colour a phase and ratio."""
    rows = [row for row in rows if row.ratio and "speed_up" in row.details]
    multiples = sorted({row.details["multiple_of"] for row in rows})
    ratios = sorted({row.ratio for row in rows})
    for phase, batch in sorted({(row.what, row.details["batch"]) for row in rows}, reverse=True):
        for ratio in ratios:
            mine = {
                row.details["multiple_of"]: row.details["reached"]
                for row in rows
                if (row.what, row.details["batch"], row.ratio) == (phase, batch, ratio)
            }
            words = {"prefill": "prefill", "decode": "decoding"}[phase]
            color = GREEN if phase == "prefill" else BLUE if batch == 1 else ORANGE
            axes.plot(
                [multiples.index(multiple) for multiple in sorted(mine)],
                [mine[multiple] for multiple in sorted(mine)],
                color=color,
                marker=MARKER[color],
                alpha=0.35 + 0.65 * (ratios.index(ratio) + 1) / len(ratios),
                linewidth=1,
                label=f"{words}, batch {batch}" if ratio == ratios[-1] else None,
            )
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(multiples)), ["off" if multiple == 1 else str(multiple) for multiple in multiples])
    axes.set_xlabel("ranks are multiples of (darker: more removed)")
    axes.set_ylabel("share of the allowed speed-up")
    axes.set_ylim(0, 1.08)
    axes.set_title(f"Rounding of ranks ({rows[0].details['layers']} layers)" if rows else "Rounding of ranks")
    if rows:
        axes.legend(loc="lower right", fontsize=9)
