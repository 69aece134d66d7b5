"""`modegpt study ratios`: compress a model at every ratio, measure it, write the table and the figure.

One calibration serves all ratios. An interrupted run goes on where it stopped.
"""

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from modegpt.calibrate import collect
from modegpt.checkpoint.folder import save_checkpoint
from modegpt.console import command_line, out, show_table
from modegpt.evaluate import perplexity
from modegpt.files import write_whole
from modegpt.machine import Stopwatch, dtype_name
from modegpt.pipeline import compress
from modegpt.report import count_parameters
from modegpt.sources import load_model, load_text, token_windows
from modegpt.study.figures import perplexity_against_ratio
from modegpt.study.results import DENSE, Results, Row, Unfinished, load, number, perplexity_row, save
from modegpt.style import keep

SEQ_LEN = 2048
PROMPT = "The main reason why the Roman Empire fell was"


def ratios(
    model: str,
    wanted: Sequence[float],
    *,
    calibration: str,
    text: str,
    samples: int,
    calibration_length: int,
    windows: int,
    multiple_of: int,
    device: str,
    seed: int,
    folder: Path,
) -> None:
    """Compress a model with MoDeGPT at every ratio; results and table go to results/ in `folder`, the picture beside.

    `samples` calibration windows of `calibration_length` tokens; `windows` to evaluate, 0 takes all.
    """
    dense, tokenizer = load_model(model, device=device)
    slug = Path(model).name
    settings = {"model": slug, "calibration": calibration, "text": text, "samples": samples}
    settings |= {"calibration_length": calibration_length, "windows": windows, "seq_len": SEQ_LEN}
    settings |= {"multiple_of": multiple_of, "seed": seed, "prompt": PROMPT, "dtype": dtype_name(dense.dtype)}
    file = folder / "results" / f"{slug}.json"
    unfinished = Unfinished(file, settings, dense.device)
    if unfinished.rows:
        out.print(f"going on after an interrupted run: {len(unfinished.rows)} rows are done")
    evaluation = token_windows(load_text(text, "evaluation"), tokenizer, windows or None, SEQ_LEN, what=f"'{text}'")
    passage = load_text(calibration, "calibration")
    tokens = token_windows(passage, tokenizer, samples, calibration_length, seed, what=f"'{calibration}'")
    done = [row.ratio for row in unfinished.rows]
    _fill(unfinished, [ratio for ratio in (0.0, *wanted) if ratio not in done], dense, tokenizer, tokens, evaluation)

    rows = sorted(unfinished.rows, key=lambda row: row.ratio)
    file = save(Results.now("ratios", "MoDeGPT at every ratio", settings, rows, dense.device, command_line()), file)
    results = load(file)
    picture = folder / f"{file.stem}.png"
    write_whole(file.with_suffix(".md"), _markdown(results))
    keep(perplexity_against_ratio(results), picture)
    unfinished.remove()
    _print(results)
    out.print(f"written: {picture}, {file} and .md")


def _fill(
    unfinished: Unfinished, todo: list[float], dense: Any, tokenizer: Any, tokens: Tensor, evaluation: Tensor
) -> None:
    statistics, seconds = None, 0.0
    for ratio in todo:
        if ratio and statistics is None:
            out.print(f"calibrating on {tokens.numel():,} tokens ...")
            start = time.perf_counter()
            statistics = collect(dense, tokens, progress=out.is_terminal)
            seconds = time.perf_counter() - start
        out.print(f"{ratio:.0%}: compressing, evaluating ..." if ratio else "dense: evaluating ...")
        row = _measure(dense, tokenizer, statistics, ratio, evaluation, unfinished.settings)
        row.details["seconds"]["calibrate"] = seconds if ratio else 0.0
        unfinished.add(row)


def _measure(
    dense: Any, tokenizer: Any, statistics: list | None, ratio: float, evaluation: Any, settings: dict[str, Any]
) -> Row:
    """One row of the table: the model at one ratio, 0 being the dense model itself."""
    clock, report = Stopwatch(), {"block_ratio": 0.0, "model_ratio": 0.0, "sparsity": [], "ranks": [], "settings": {}}
    model = dense
    if ratio:
        with clock("decompose"):
            model, summary = compress(
                copy.deepcopy(dense), statistics, ratio=ratio, multiple_of=settings["multiple_of"]
            )
        report = {name: summary.to_dict()[name] for name in report}
    with clock("evaluate"):
        measured = perplexity(model, evaluation, progress=out.is_terminal)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", model, tokenizer, report)
        size = sum(file.stat().st_size for file in Path(folder).glob("model/*.safetensors"))
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False).to(model.device)
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    details = report | {"parameters": count_parameters(model), "disk_bytes": size, "seconds": dict(clock.seconds)}
    details["continuation"] = tokenizer.decode(ids[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return perplexity_row(
        measured,
        details,
        model=settings["model"],
        method="modegpt" if ratio else DENSE,
        ratio=ratio,
        data=settings["text"],
        seed=settings["seed"],
    )


HEADER = ("removed", "perplexity", "parameters", "on disk", "decompose", "evaluate")


def _cells(row: Row) -> tuple[str, ...]:
    seconds = row.details["seconds"]
    known = row.spread is not None and math.isfinite(row.spread)  # a single window has none
    return (
        f"{row.details['block_ratio']:.1%}" if row.ratio else "dense",
        number(row.value) + (f" ± {row.spread:.2f}" if known else ""),
        f"{row.details['parameters'] / 1e6:.1f} M",
        f"{row.details['disk_bytes'] / 1e6:.0f} MB",
        f"{seconds['decompose']:.1f} s" if row.ratio else "",
        f"{seconds['evaluate']:.1f} s",
    )


def _caption(results: Results) -> str:
    rows, about, versions = results.rows, results.settings, results.versions
    shared = max(row.details["seconds"]["calibrate"] for row in rows)
    return (
        f"{about['model']} in {about['dtype']} on {results.device} ({results.threads} threads). MoDeGPT with "
        f"global allocation and ranks in multiples of {about['multiple_of']}, calibrated once, in {shared:.0f} s, on "
        f"{about['samples']} x {about['calibration_length']} tokens of {about['calibration']}. Perplexity on "
        f"{rows[0].details['tokens']:,} tokens of {about['text']} in windows of {about['seq_len']}. "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {results.date}."
    )


def _print(results: Results) -> None:
    table = Table(*HEADER, box=None)
    for row in results.rows:
        table.add_row(*_cells(row))
    show_table(table, 80)
    out.print(_caption(results))


def _markdown(results: Results) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---:|" * len(HEADER)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in results.rows]
    lines += ["", _caption(results), "", f"Greedy continuations of “{results.settings['prompt']}”:", ""]
    for row in results.rows:
        continuation = " ".join(row.details["continuation"].split())
        lines.append(f"- **{_cells(row)[0]}**: {continuation} …")
    return "\n".join(lines) + "\n"
