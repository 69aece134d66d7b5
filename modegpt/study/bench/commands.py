"""`modegpt bench compress | literal | precision | throughput | scaling`."""

import gc
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

from modegpt import console
from modegpt.allocate import check_ratio
from modegpt.errors import ModegptError
from modegpt.files import to_json, write_whole
from modegpt.sources import find_device, load_model, load_text, token_windows
from modegpt.study.bench.compress import compression_rows, time_compression
from modegpt.study.bench.literal import literal_rows, time_steps
from modegpt.study.bench.precision import precision_rows
from modegpt.study.bench.scaling import launch, quality_rows, scaling_rows
from modegpt.study.bench.shapes import SHAPES, config_of
from modegpt.study.bench.throughput import throughput
from modegpt.study.figures.speed import compression, literal_steps, whole_compressions
from modegpt.study.results import Results, Row, load, save
from modegpt.style import keep

app = typer.Typer(
    help="Measure speed and memory on published shapes with random weights: no download, results as a file.",
    add_completion=False,
)
FileOption = Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Gets the results, after every step.")]
ShapesOption = Annotated[str, typer.Option(metavar="A,B", help=f"Some of {', '.join(SHAPES)}.")]
RatioOption = Annotated[float, typer.Option(help="Share of the block parameters to remove.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Calibration windows.")]
LengthOption = Annotated[int, typer.Option(min=2, help="Tokens in a calibration window.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Calibration windows that run together.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def compress(
    file: FileOption,
    shapes: ShapesOption = "llama-2-7b",
    ratio: RatioOption = 0.3,
    samples: SamplesOption = 128,
    length: LengthOption = 2048,
    batch_size: BatchOption = 8,
    walks: Annotated[str, typer.Option(metavar="1,2", help="Walks to compare: 1 keeps all statistics, 2 few.")] = "2",
    stream: Annotated[bool, typer.Option("--stream", help="From disk, one layer at a time.")] = False,
    offload_hidden: Annotated[bool, typer.Option("--offload-hidden", help="With --stream, as in compress.")] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Of the model, if not all of the shape's.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Time whole compressions, from the first calibration token to the compressed model, with peak memory.

    modegpt bench compress --shapes llama-2-7b,llama-2-13b --out compress.json
    """
    where = _checked(file, ratio, device)
    if offload_hidden and not stream:
        raise ModegptError("--offload-hidden goes with --stream")
    variants: dict[str, dict[str, Any]] = {}
    if stream:
        name = "streamed, hidden states on the CPU" if offload_hidden else "streamed"
        variants[name] = {"stream": True, "hidden_on": "cpu" if offload_hidden else None}
    else:
        for number in _numbers("--walks", walks, (1, 2)):
            variants[f"{number} walk{'s' * (number > 1)}"] = {"walks": number}
    jobs: dict[str, Callable[[], list[Row]]] = {}
    for shape in _shapes(shapes, layers):
        for name, options in variants.items():
            some = f", {layers} of {config_of(shape).num_hidden_layers} layers" if layers else ""

            def job(shape: str = shape, options: dict = options, name: str = name + some) -> list[Row]:
                sizes = {"layers": layers, "samples": samples, "length": length, "batch_size": batch_size}
                return compression_rows(time_compression(shape, where, ratio=ratio, **sizes, **options), name)

            jobs[f"{shape}, {name}{some}"] = job
    settings = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size}
    results = _measure("bench.compress", "compression: seconds and memory", settings, jobs, file, where)
    if whole_compressions(results):
        _draw(compression(results), file)


@app.command()
def literal(
    file: FileOption,
    shapes: ShapesOption = "llama-2-7b",
    ratio: RatioOption = 0.3,
    samples: SamplesOption = 128,
    length: LengthOption = 2048,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
) -> None:
    """Time the paper's recipe as its text has it and this kit's, step by step, on one layer of a shape."""
    where = _checked(file, ratio, device)
    sizes = {"samples": samples, "length": length, "batch_size": batch_size}
    jobs = {
        shape: lambda shape=shape: literal_rows(time_steps(shape, where, ratio=ratio, **sizes))
        for shape in _shapes(shapes)
    }
    title = "the paper's text against this kit, step by step"
    results = _measure("bench.literal", title, {"ratio": ratio} | sizes, jobs, file, where)
    if results.find(model=next(iter(jobs)), what="speed-up"):
        _draw(literal_steps(results, next(iter(jobs))), file)


@app.command()
def precision(
    file: FileOption,
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")] = "smollm2-135m",
    ratio: RatioOption = 0.3,
    calibration: Annotated[str, typer.Option(help="Text to calibrate on.")] = "wiki-passages",
    text: Annotated[str, typer.Option(help="Text to evaluate on.")] = "wiki-passages",
    samples: SamplesOption = 64,
    length: LengthOption = 512,
    windows: Annotated[int, typer.Option(min=1, help="Evaluation windows of 2048 tokens.")] = 24,
    device: DeviceOption = "auto",
) -> None:
    """Compare Gram matrices, kept channels and perplexity with those of a run in float64."""
    where = _checked(file, ratio, device)
    dense, tokenizer = load_model(model, device=str(where))
    tokens = token_windows(load_text(calibration, "calibration"), tokenizer, samples, length, 0, what=calibration)
    held_out = token_windows(load_text(text, "evaluation"), tokenizer, windows, 2048, what=text)
    names = {"calibration": calibration, "text": text}
    jobs = {model: lambda: precision_rows(Path(model).name, dense, tokens, held_out, ratio=ratio, data=names)}
    settings = {"ratio": ratio, "samples": samples, "length": length, "windows": windows}
    _measure("bench.precision", "default precision against float64", settings | names, jobs, file, where)


@app.command()
def scaling(
    file: FileOption,
    shapes: ShapesOption = "llama-2-7b,llama-2-13b",
    ranks: Annotated[str, typer.Option(metavar="1,2", help="Numbers of processes, one GPU each.")] = "1,2",
    model: Annotated[str, typer.Option(help="A real model to compare perplexities on; none to leave out.")] = (
        "smollm2-135m"
    ),
    ratio: RatioOption = 0.3,
    samples: SamplesOption = 128,
    length: LengthOption = 2048,
    batch_size: BatchOption = 8,
    windows: Annotated[int, typer.Option(min=1, help="Evaluation windows of the real model.")] = 24,
    device: DeviceOption = "auto",
) -> None:
    """Time the same compression on one and on several GPUs of this host, in one run, and compare the results.

    On several hosts start the same work by torchrun on each, with --rdzv-endpoint: see the README.
    """
    where = _checked(file, ratio, device)
    numbers = _numbers("--ranks", ranks, range(1, 1025))
    if where.type == "cuda" and torch.cuda.device_count() < max(numbers):
        raise ModegptError(f"{max(numbers)} ranks want as many GPUs, and this host has {torch.cuda.device_count()}")
    options = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size, "walks": 2}
    jobs = {
        shape: lambda shape=shape: scaling_rows(
            {n: launch({"device": where.type, "shape": shape, "options": options}, n) for n in numbers}
        )
        for shape in _shapes(shapes)
    }
    if model != "none":
        job = {"device": where.type, "model": model, "windows": windows, "ratio": ratio}
        jobs[model] = lambda: quality_rows({n: launch(job, n) for n in numbers}, model, ratio)
    title = "compression on several GPUs"
    _measure("bench.scaling", title, options | {"windows": windows}, jobs, file, where)


app.command()(throughput)


def _measure(
    experiment: str,
    title: str,
    settings: dict[str, Any],
    jobs: dict[str, Callable[[], list[Row]]],
    file: Path,
    device: torch.device,
) -> Results:
    """Do one job after the other, and save after each; one that fails leaves a row that says why."""
    rows: list[Row] = []
    written: Path | None = None
    # without the places of this machine
    command = shlex.join(["modegpt", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])
    for name, job in jobs.items():
        console.out.print(f"{name} ...")
        try:
            found = job()
        except (ModegptError, RuntimeError) as error:  # lack of memory is one, also inside a solver
            reason = " ".join(str(error).split())
            console.err.print(f"{name}: {reason}", style="yellow")
            found = [Row(what="step", value=None, unit="s", model=name, method="modegpt", details={"error": reason})]
        rows += found
        for row in found:
            console.out.print(f"  {row.what}{' of ' + row.method if row.method != 'modegpt' else ''}: {_amount(row)}")
        results = Results.now(experiment, title, settings, rows, device, command)
        if written:
            write_whole(written, to_json(asdict(results)))
        else:
            written = save(results, file)  # beside what another machine has measured
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    console.out.print(f"written: {written}")
    return results


def _draw(picture: Figure, file: Path) -> None:
    keep(picture, file.with_suffix(".png"))
    console.out.print(f"and its picture: {file.with_suffix('.png')}")


def _amount(row: Row) -> str:
    if row.value is None:
        return "failed"
    return f"{row.value / 2**30:.2f} GiB" if row.unit == "bytes" else f"{row.value:.4g} {row.unit}".rstrip()


def _checked(file: Path, ratio: float, device: str) -> torch.device:
    check_ratio(ratio)
    if file.suffix != ".json":
        raise ModegptError(f"--out {file}: give a name that ends in .json")
    if file.exists():
        load(file)  # better to know now than after the first job
    return find_device(device)


def _shapes(names: str, layers: int | None = None) -> list[str]:
    for name in names.split(","):
        config_of(name, layers)
    return names.split(",")


def _numbers(option: str, words: str, allowed: Iterable[int]) -> list[int]:
    known = list(allowed)
    numbers = [int(word) if word.isascii() and word.isdigit() else -1 for word in words.split(",")]
    if not set(numbers) <= set(known):
        raise ModegptError(f"{option} takes numbers from {known[0]} to {known[-1]}, got '{words}'")
    return numbers
