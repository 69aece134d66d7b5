"""`modegpt compare`: every method on the same tokens, at every ratio; a results file, a table and a figure.

What a method has to know is measured once and serves all its ratios. An interrupted run goes on where it stopped.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from modegpt.console import command_line, err, out
from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.files import MARK, write_whole
from modegpt.machine import Stopwatch
from modegpt.methods import method_named
from modegpt.report import count_parameters
from modegpt.study.figures import perplexity_against_parameters
from modegpt.study.results import DENSE, Results, Row, Unfinished, load, number, perplexity_row, save
from modegpt.style import keep


def compare_to_file(
    model: PreTrainedModel,
    tokens: Tensor,
    windows: Tensor,
    methods: Sequence[str],
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    file: Path,
    batch_size: int = 4,
    progress: bool = False,
) -> Results:
    """`compare`, with the rows on disk after each; then a results file, and its table and picture beside it.

    The results may go beside `file`, with the machine in the name, if it holds those of another machine.
    """
    unfinished = Unfinished(file, settings, model.device)
    if unfinished.rows:
        out.print(f"going on after an interrupted run: {len(unfinished.rows)} rows are done")
    for row in compare(model, tokens, windows, methods, ratios, settings, unfinished.rows, batch_size, progress):
        unfinished.add(row)
        what = f"{row.method} {row.ratio:.0%}"
        if row.error:
            err.print(f"{what} fails: {row.error}", style="yellow")
            continue
        seconds = ", ".join(f"{step} {took:.1f} s" for step, took in row.details["seconds"].items())
        out.print(f"{what}: perplexity {row.value:.2f} ({seconds})")
    title = "every method on the same tokens"
    file = save(Results.now("compare", title, settings, unfinished.rows, model.device, command_line()), file)
    results = load(file)
    write_whole(file.with_suffix(".md"), f"{table(results)}\n<!-- {MARK} -->\n")
    keep(perplexity_against_parameters(results), file.with_suffix(".png"))
    unfinished.remove()
    out.print(table(results))
    out.print(f"written: {file}, {file.with_suffix('.md').name} and {file.with_suffix('.png').name} beside it")
    return results


def compare(
    model: PreTrainedModel,
    tokens: Tensor,
    windows: Tensor,
    methods: Sequence[str],
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    rows: Sequence[Row] = (),
    batch_size: int = 4,
    progress: bool = False,
) -> Iterator[Row]:
    """Yield a row for the dense model and for each method at each ratio, the done ones (`rows`) left out.

    Args:
        model: the dense model; it stays as it is.
        tokens: calibration tokens (samples, length), the same for all methods.
        windows: evaluation windows (windows, seq_len).
        settings: of the run; `model`, `text` and `seed` go into the rows.

    Yields:
        Perplexities with these details: block_ratio, model_ratio, parameters, tokens, settings, warnings and seconds:
        `measure` once for all ratios of a method, `compress`, `evaluate`. Where a method fails, no value and `error`,
        why.
    """
    done = {(row.method, row.ratio) for row in rows}
    where = {"model": settings["model"], "data": settings["text"], "seed": settings["seed"]}

    def measured_row(name: str, ratio: float, small: PreTrainedModel, report: Mapping[str, Any], before: Any) -> Row:
        clock = Stopwatch()
        with clock("evaluate"):
            found = perplexity(small, windows, progress=progress)
        details = {"block_ratio": report.get("block_ratio", 0.0), "model_ratio": report.get("model_ratio", 0.0)}
        details |= {"parameters": count_parameters(small), "settings": report.get("settings", {})}
        details |= {"warnings": report.get("warnings", []), "seconds": {**before, **clock.seconds}}
        return perplexity_row(found, details, method=name, ratio=ratio, **where)

    def failed_row(name: str, ratio: float, error: ModegptError) -> Row:
        why = {"error": str(error)}
        return Row(what="perplexity", unit="", value=None, method=name, ratio=ratio, details=why, **where)

    if (DENSE, 0.0) not in done:
        yield measured_row(DENSE, 0.0, model, {}, {})
    for name in methods:
        todo = [ratio for ratio in ratios if (name, ratio) not in done]
        if not todo:
            continue
        clock = Stopwatch()
        try:
            with clock("measure"):
                measured = method_named(name).measure(model, tokens, batch_size=batch_size, progress=progress)
        except ModegptError as error:  # a method that does not fit the model leaves the others their turn
            yield from (failed_row(name, ratio, error) for ratio in todo)
            continue
        for ratio in todo:
            try:
                with clock("compress"):
                    small, report = method_named(name).compress(copy.deepcopy(model), measured, ratio)
                yield measured_row(name, ratio, small, report.to_dict(), clock.seconds)
            except ModegptError as error:
                yield failed_row(name, ratio, error)
            clock.seconds.pop("compress")
        del measured  # before the next method measures


def table(results: Results) -> str:
    """Markdown: a line a method, a column a ratio, perplexities with the share of all parameters that is gone."""
    ratios = sorted({row.ratio for row in results.rows} - {0.0})
    found = {(row.method, row.ratio): row for row in results.rows}
    dense, about = found[DENSE, 0.0], results.settings
    lines = [
        f"| method | {' | '.join(f'{ratio:.0%}' for ratio in ratios)} | measure | compress |",
        "|---|" + "---:|" * (len(ratios) + 2),
    ]
    for method in dict.fromkeys(row.method for row in results.rows if row.method != DENSE):
        mine = [found.get((method, ratio)) for ratio in ratios]
        seconds = [row.details["seconds"] for row in mine if row and "seconds" in row.details]
        cells = [_cell(row) for row in mine]
        cells.append(f"{max(s['measure'] for s in seconds):.0f} s" if seconds else "")
        cells.append(f"{sum(s['compress'] for s in seconds) / len(seconds):.1f} s" if seconds else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    versions = results.versions
    caption = (
        f"Perplexity of {about['model']} on {dense.details['tokens']:,} tokens of {about['text']}, in windows of "
        f"{about['seq_len']}; dense {dense.value:.2f} ± {_spread(dense)}, {dense.details['parameters'] / 1e6:.1f} M "
        f"parameters. Columns: share of the decoder blocks' parameters removed; in brackets the share of all "
        f"parameters. Calibrated on {about['samples']} x {about['calibration_length']} tokens of "
        f"{about['calibration']}; `measure` is done once for all ratios. {about['dtype']} on {results.device}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {results.date}."
    )
    failed = dict.fromkeys(f"{row.method} fails: {row.error}." for row in results.rows if row.error)
    return "\n".join([*lines, "", caption, *failed, ""])


def _cell(row: Row | None) -> str:
    if row is None or row.error:
        return "" if row is None else "fails"
    return f"{number(row.value)} ± {_spread(row)} ({row.details['model_ratio']:.1%})"


def _spread(row: Row) -> str:  # a single window has none
    return "?" if row.spread is None or not math.isfinite(row.spread) else number(row.spread)
