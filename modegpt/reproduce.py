"""`make reproduce`: compress the embedded model at every ratio, measure it, write the table and the figure.

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

from modegpt.cli import dtype_name, out, run_alone, write_json
from modegpt.compare import rows_so_far, today
from modegpt.errors import ModegptError

SEQ_LEN = 2048
PROMPT = "The main reason why the Roman Empire fell was"


def reproduce(
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")] = "smollm2-135m",
    ratios: Annotated[str, typer.Option(help="Ratios to compress at.")] = "0.1,0.2,0.3,0.4,0.5",
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
    from modegpt.figures import perplexity_against_ratio
    from modegpt.report import environment
    from modegpt.sources import load_model, load_text, token_windows

    settings = {"model": Path(model).name, "calibration": calibration, "text": text, "samples": samples}
    settings |= {"calibration_length": calibration_length, "windows": windows, "seq_len": SEQ_LEN}
    settings |= {"multiple_of": multiple_of, "seed": seed}
    try:
        wanted = [0.0, *map(float, ratios.split(","))]
    except ValueError as error:
        raise ModegptError(f"--ratios is a list such as 0.1,0.3, got '{ratios}'") from error
    slug = settings["model"]
    (folder / "results").mkdir(parents=True, exist_ok=True)
    unfinished = folder / "results" / f".{slug}.partial.json"

    dense, tokenizer = load_model(model, device=device)
    settings |= environment(dense.device) | {"dtype": dtype_name(dense)}
    rows = rows_so_far(unfinished, settings)
    if rows:
        out.print(f"going on after an interrupted run: {len(rows)} rows are done")
    todo = [ratio for ratio in wanted if ratio not in [row["requested_ratio"] for row in rows]]
    evaluation = token_windows(load_text(text, "evaluation"), tokenizer, windows or None, SEQ_LEN, what=f"'{text}'")
    passage = load_text(calibration, "calibration")
    tokens = token_windows(passage, tokenizer, samples, calibration_length, seed, what=f"'{calibration}'")

    statistics, calibrate_seconds = None, 0.0
    for ratio in todo:
        if ratio and statistics is None:
            out.print(f"calibrating on {tokens.numel():,} tokens ...")
            start = time.perf_counter()
            statistics = collect(dense, tokens, progress=out.is_terminal)
            calibrate_seconds = time.perf_counter() - start
        out.print(f"{ratio:.0%}: compressing, evaluating ..." if ratio else "dense: evaluating ...")
        row = _measure(dense, tokenizer, statistics, ratio, multiple_of, evaluation)
        row["seconds"]["calibrate"] = calibrate_seconds if ratio else 0.0
        rows.append(row)
        write_json(unfinished, settings | {"rows": rows})

    rows.sort(key=lambda row: row["requested_ratio"])
    results = settings | {"date": today(), "prompt": PROMPT, "rows": rows}
    write_json(folder / "results" / f"{slug}.json", results)
    (folder / "results" / f"{slug}.md").write_text(_markdown(results), encoding="utf-8")
    perplexity_against_ratio(results).savefig(folder / f"{slug}.png")
    unfinished.unlink(missing_ok=True)
    _print(results)
    out.print(f"written: {folder}/{slug}.png, {folder}/results/{slug}.json and .md")


def _measure(
    dense: Any, tokenizer: Any, statistics: list | None, ratio: float, multiple_of: int, evaluation: Any
) -> dict[str, Any]:
    """One row of the table: the model at one ratio, 0 being the dense model itself."""
    from modegpt.checkpoint import save_checkpoint
    from modegpt.evaluate import perplexity
    from modegpt.pipeline import compress
    from modegpt.report import Stopwatch, count_parameters

    clock, report = Stopwatch(), {"block_ratio": 0.0, "model_ratio": 0.0, "sparsity": [], "ranks": [], "settings": {}}
    model = dense
    if ratio:
        with clock("decompose"):
            model, summary = compress(copy.deepcopy(dense), statistics, ratio=ratio, multiple_of=multiple_of)
        report = {name: summary.to_dict()[name] for name in report}
    with clock("evaluate"):
        measured = perplexity(model, evaluation, progress=out.is_terminal)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", model, tokenizer, report)
        size = sum(file.stat().st_size for file in Path(folder).glob("model/*.safetensors"))
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False).to(model.device)
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return {
        "requested_ratio": ratio,
        **report,
        "perplexity": measured.perplexity,
        "standard_error": measured.standard_error,
        "tokens": measured.tokens,
        "parameters": count_parameters(model),
        "disk_bytes": size,
        "seconds": dict(clock.seconds),
        "continuation": tokenizer.decode(ids[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True),
    }


HEADER = ("removed", "perplexity", "parameters", "on disk", "decompose", "evaluate")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = row["seconds"]
    error = row["standard_error"]  # a single window has none
    spread = f" ± {error:.2f}" if error is not None and math.isfinite(error) else ""
    return (
        f"{row['block_ratio']:.1%}" if row["requested_ratio"] else "dense",
        f"{row['perplexity']:.2f}{spread}",
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['disk_bytes'] / 1e6:.0f} MB",
        f"{seconds['decompose']:.1f} s" if row["requested_ratio"] else "",
        f"{seconds['evaluate']:.1f} s",
    )


def _caption(results: dict[str, Any]) -> str:
    rows, versions = results["rows"], results["versions"]
    shared = max(row["seconds"]["calibrate"] for row in rows)
    return (
        f"{results['model']} in {results['dtype']} on {results['device']} ({results['threads']} threads). MoDeGPT with "
        f"global allocation and ranks in multiples of {results['multiple_of']}, calibrated once, in {shared:.0f} s, on "
        f"{results['samples']} x {results['calibration_length']} tokens of {results['calibration']}. Perplexity on "
        f"{rows[0]['tokens']:,} tokens of {results['text']} in windows of {results['seq_len']}. "
        f"torch {versions['torch']}, transformers {versions['transformers']}, {results['date']}."
    )


def _print(results: dict[str, Any]) -> None:
    table = Table(*HEADER, box=None)
    for row in results["rows"]:
        table.add_row(*_cells(row))
    Console(highlight=False).print(table)
    out.print(_caption(results))


def _markdown(results: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---:|" * len(HEADER)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in results["rows"]]
    lines += ["", _caption(results), "", f"Greedy continuations of “{results['prompt']}”:", ""]
    for row in results["rows"]:
        continuation = " ".join(row["continuation"].split())
        lines.append(f"- **{_cells(row)[0]}**: {continuation} …")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run as `python -m modegpt.reproduce`."""
    run_alone(reproduce)


if __name__ == "__main__":
    main()
