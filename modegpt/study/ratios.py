"""`python -m modegpt.study.ratios`: compress a model at every ratio, measure it, write the table and the figure.

One calibration serves all ratios. An interrupted run goes on where it stopped.
"""

import copy
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modegpt.console import numbers, out, run_alone
from modegpt.files import write_whole
from modegpt.machine import dtype_name
from modegpt.study.results import DENSE, Results, Row, Unfinished, load, module_command, number, perplexity_row, save

SEQ_LEN = 2048
PROMPT = "The main reason why the Roman Empire fell was"


def ratios(
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")] = "smollm2-135m",
    wanted: Annotated[str, typer.Option("--ratios", help="Ratios to compress at.")] = "0.1,0.2,0.3,0.4,0.5",
    calibration: Annotated[str, typer.Option(help="Text to calibrate on.")] = "wiki-passages",
    text: Annotated[str, typer.Option(help="Text to evaluate on.")] = "wiki-passages",
    samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    calibration_length: Annotated[int, typer.Option(help="Tokens in a calibration window.")] = 512,
    windows: Annotated[int, typer.Option(help="Evaluation windows of 2048 tokens; 0 takes all.")] = 24,
    multiple_of: Annotated[int, typer.Option(help="Make every rank a multiple of this.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Draws the calibration windows.")] = 0,
    folder: Annotated[Path, typer.Option("--out", help="Gets the pictures, and results/ the numbers.")] = Path(
        "figures"
    ),
) -> None:
    """Compress MODEL with MoDeGPT at every ratio and measure perplexity, parameters, size and time."""
    from modegpt.calibrate import collect
    from modegpt.sources import load_model, load_text, token_windows
    from modegpt.study.figures import perplexity_against_ratio
    from modegpt.style import keep

    todo = [0.0, *numbers("--ratios", wanted, "0.1,0.3")]
    slug = Path(model).name
    settings = {"model": slug, "calibration": calibration, "text": text, "samples": samples}
    settings |= {"calibration_length": calibration_length, "windows": windows, "seq_len": SEQ_LEN}
    settings |= {"multiple_of": multiple_of, "seed": seed, "prompt": PROMPT}
    file = folder / "results" / f"{slug}.json"

    dense, tokenizer = load_model(model, device=device)
    settings["dtype"] = dtype_name(dense.dtype)
    unfinished = Unfinished(file, settings, dense.device)
    if unfinished.rows:
        out.print(f"going on after an interrupted run: {len(unfinished.rows)} rows are done")
    done = [row.ratio for row in unfinished.rows]
    evaluation = token_windows(load_text(text, "evaluation"), tokenizer, windows or None, SEQ_LEN, what=f"'{text}'")
    passage = load_text(calibration, "calibration")
    tokens = token_windows(passage, tokenizer, samples, calibration_length, seed, what=f"'{calibration}'")

    statistics, calibrate_seconds = None, 0.0
    for ratio in todo:
        if ratio in done:
            continue
        if ratio and statistics is None:
            out.print(f"calibrating on {tokens.numel():,} tokens ...")
            start = time.perf_counter()
            statistics = collect(dense, tokens, progress=out.is_terminal)
            calibrate_seconds = time.perf_counter() - start
        out.print(f"{ratio:.0%}: compressing, evaluating ..." if ratio else "dense: evaluating ...")
        row = _measure(dense, tokenizer, statistics, ratio, evaluation, settings)
        row.details["seconds"]["calibrate"] = calibrate_seconds if ratio else 0.0
        unfinished.add(row)

    rows = sorted(unfinished.rows, key=lambda row: row.ratio)
    command = module_command("modegpt.study.ratios")
    file = save(Results.now("ratios", "MoDeGPT at every ratio", settings, rows, dense.device, command), file)
    results = load(file)
    picture = folder / f"{file.stem}.png"
    write_whole(file.with_suffix(".md"), _markdown(results))
    keep(perplexity_against_ratio(results), picture)
    unfinished.remove()
    _print(results)
    out.print(f"written: {picture}, {file} and .md")


def _measure(
    dense: Any, tokenizer: Any, statistics: list | None, ratio: float, evaluation: Any, settings: dict[str, Any]
) -> Row:
    """One row of the table: the model at one ratio, 0 being the dense model itself."""
    from modegpt.checkpoint.folder import save_checkpoint
    from modegpt.evaluate import perplexity
    from modegpt.machine import Stopwatch
    from modegpt.pipeline import compress
    from modegpt.report import count_parameters

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
    Console(highlight=False).print(table)
    out.print(_caption(results))


def _markdown(results: Results) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---:|" * len(HEADER)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in results.rows]
    lines += ["", _caption(results), "", f"Greedy continuations of “{results.settings['prompt']}”:", ""]
    for row in results.rows:
        continuation = " ".join(row.details["continuation"].split())
        lines.append(f"- **{_cells(row)[0]}**: {continuation} …")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run as `python -m modegpt.study.ratios`."""
    run_alone(ratios)


if __name__ == "__main__":
    main()
