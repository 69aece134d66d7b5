"""`modegpt compare`: every method on the same tokens, at every ratio; a results file, a table and a figure.

What a method has to know is measured once and serves all its ratios. An interrupted run goes on where it stopped.
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from modegpt.baselines import METHODS
from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.report import Stopwatch, count_parameters

DENSE = "dense"


def check_methods(names: Sequence[str]) -> None:
    """Raise ModegptError, which lists the known ones, for an unknown method or one named twice."""
    for name in names:
        if name not in METHODS:
            raise ModegptError(f"unknown method '{name}': use all, or some of {', '.join(METHODS)}")
    if len(set(names)) < len(names):
        raise ModegptError("a method is named twice")


def compare(
    model: PreTrainedModel,
    tokens: Tensor,
    windows: Tensor,
    methods: Sequence[str],
    ratios: Sequence[float],
    *,
    rows: list[dict[str, Any]],
    batch_size: int = 4,
    progress: bool = False,
) -> Any:
    """Yield a row for the dense model and for each method at each ratio, the done ones (`rows`) left out.

    Args:
        model: the dense model; it stays as it is.
        tokens: calibration tokens (samples, length), the same for all methods.
        windows: evaluation windows (windows, seq_len).

    Yields:
        method, requested_ratio, block_ratio, model_ratio, parameters, perplexity, standard_error, tokens, settings,
        warnings and seconds: `measure` once for all ratios of a method, `compress`, `evaluate`. Where a method fails,
        perplexity None and `error`, why.
    """
    done = {(row["method"], row["requested_ratio"]) for row in rows}
    if (DENSE, 0.0) not in done:
        yield _row(DENSE, 0.0, model, windows, {}, {}, progress)
    for name in methods:
        todo = [ratio for ratio in ratios if (name, ratio) not in done]
        if not todo:
            continue
        clock = Stopwatch()
        try:
            with clock("measure"):
                measured = METHODS[name].measure(model, tokens, batch_size=batch_size, progress=progress)
        except ModegptError as error:  # a method that does not fit the model leaves the others their turn
            yield from (_failed(name, ratio, error) for ratio in todo)
            continue
        for ratio in todo:
            try:
                with clock("compress"):
                    small, report = METHODS[name].compress(copy.deepcopy(model), measured, ratio)
                yield _row(name, ratio, small, windows, report.to_dict(), clock.seconds, progress)
            except ModegptError as error:
                yield _failed(name, ratio, error)
            clock.seconds.pop("compress")
        del measured  # before the next method measures


def _row(
    name: str,
    ratio: float,
    model: PreTrainedModel,
    windows: Tensor,
    report: Mapping[str, Any],
    seconds: Mapping[str, float],
    progress: bool,
) -> dict[str, Any]:
    clock = Stopwatch()
    with clock("evaluate"):
        measured = perplexity(model, windows, progress=progress)
    return {
        "method": name,
        "requested_ratio": ratio,
        "block_ratio": report.get("block_ratio", 0.0),
        "model_ratio": report.get("model_ratio", 0.0),
        "parameters": count_parameters(model),
        **asdict(measured),
        "settings": report.get("settings", {}),
        "warnings": report.get("warnings", []),
        "seconds": {**seconds, **clock.seconds},
    }


def _failed(name: str, ratio: float, error: ModegptError) -> dict[str, Any]:
    return {"method": name, "requested_ratio": ratio, "perplexity": None, "error": str(error)}


def rows_so_far(file: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that an interrupted run of these very settings has left in `file`."""
    try:
        saved = json.loads(file.read_text())
        rows = saved.pop("rows")
    except (OSError, ValueError, KeyError):
        return []
    return rows if saved == json.loads(json.dumps(settings)) else []


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a line a method, a column a ratio, perplexities with the share of all parameters that is gone."""
    rows = results["rows"]
    ratios = sorted({row["requested_ratio"] for row in rows} - {0.0})
    found = {(row["method"], row["requested_ratio"]): row for row in rows}
    dense = found[DENSE, 0.0]
    lines = [
        f"| method | {' | '.join(f'{ratio:.0%}' for ratio in ratios)} | measure | compress |",
        "|---|" + "---:|" * (len(ratios) + 2),
    ]
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != DENSE):
        mine = [found.get((method, ratio)) for ratio in ratios]
        seconds = [row["seconds"] for row in mine if row and "seconds" in row]
        cells = [_cell(row) for row in mine]
        cells.append(f"{max(s['measure'] for s in seconds):.0f} s" if seconds else "")
        cells.append(f"{sum(s['compress'] for s in seconds) / len(seconds):.1f} s" if seconds else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    versions = results["versions"]
    caption = (
        f"Perplexity of {results['model']} on {dense['tokens']:,} tokens of {results['text']}, in windows of "
        f"{results['seq_len']}; dense {dense['perplexity']:.2f} ± {_spread(dense)}, {dense['parameters'] / 1e6:.1f} M "
        f"parameters. Columns: share of the decoder blocks' parameters removed; in brackets the share of all "
        f"parameters. Calibrated on {results['samples']} x {results['calibration_length']} tokens of "
        f"{results['calibration']}; `measure` is done once for all ratios. {results['dtype']} on {results['device']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {results['date']}."
    )
    failed = dict.fromkeys(f"{row['method']} fails: {row['error']}." for row in rows if "error" in row)
    return "\n".join([*lines, "", caption, *failed, ""])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "" if row is None else "fails"
    return f"{_number(row['perplexity'])} ± {_spread(row)} ({row['model_ratio']:.1%})"


def _spread(row: Mapping[str, Any]) -> str:
    error = row["standard_error"]  # a single window has none
    return "?" if error is None or not math.isfinite(error) else _number(error)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "inf"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")


def today() -> str:
    """The date that goes into a results file."""
    return time.strftime("%Y-%m-%d")
