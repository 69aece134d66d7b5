"""The work of `modegpt bench compress | literal | precision | scaling | stream`: job after job, into one file."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from modegpt.console import command_line, err, out
from modegpt.errors import ModegptError
from modegpt.machine import now
from modegpt.sources import load_model, load_text, token_windows
from modegpt.study.bench.compress import compression_rows, time_compression
from modegpt.study.bench.floors import floor_rows, measure_rates
from modegpt.study.bench.literal import literal_rows, time_steps
from modegpt.study.bench.precision import precision_rows
from modegpt.study.bench.random_folder import make_folder
from modegpt.study.bench.scaling import launch, quality_rows, scaling_rows
from modegpt.study.bench.shapes import config_of, random_model
from modegpt.study.bench.stream import loaded, streamed
from modegpt.study.figures import speed
from modegpt.study.results import Results, Row, save, write
from modegpt.style import keep


def compress(
    file: Path,
    device: torch.device,
    shapes: Sequence[str],
    layers: int | None,
    variants: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, Any],
) -> None:
    """Time whole compressions: every shape in every variant, such as {"2 walks": {"walks": 2}}.

    `sizes` are ratio, samples, length (of a calibration window) and batch_size.
    """
    for shape in shapes:
        config_of(shape, layers)  # refused before any work
    jobs: dict[str, Callable[[], list[Row]]] = {}
    rates = cache(lambda: measure_rates(device, torch.bfloat16))  # in this very run
    for shape in shapes:
        for name, options in variants.items():
            some = f", {layers} of {config_of(shape).num_hidden_layers} layers" if layers else ""

            def job(shape: str = shape, options: Mapping[str, Any] = options, name: str = name + some) -> list[Row]:
                found = time_compression(shape, device, layers=layers, **sizes, **options)
                rows = compression_rows(found, name)
                if options.keys() == {"walks"}:  # the paper's method, in memory
                    model = random_model(shape, layers, device="meta")
                    rows += floor_rows(model, sizes, options["walks"], rates(), found["seconds"], shape, name)
                return rows

            jobs[f"{shape}, {name}{some}"] = job
    results = _measure("bench.compress", "compression: seconds and memory", sizes, jobs, file, device)
    if speed.whole_compressions(results):
        _draw(speed.compression(results), file)


def literal(file: Path, device: torch.device, shapes: Sequence[str], sizes: Mapping[str, Any]) -> None:
    """Time the paper's recipe as its text has it and this kit's, on one layer of each shape; `sizes` as above."""
    for shape in shapes:
        config_of(shape)
    jobs = {shape: lambda shape=shape: literal_rows(time_steps(shape, device, **sizes)) for shape in shapes}
    title = "the paper's text against this kit, step by step"
    results = _measure("bench.literal", title, sizes, jobs, file, device)
    if results.find(model=shapes[0], what="speed-up"):
        _draw(speed.literal_steps(results, shapes[0]), file)


def precision(file: Path, device: torch.device, model: str, texts: Mapping[str, str], sizes: Mapping[str, Any]) -> None:
    """Compare with a run in float64, on `texts` (calibration, text); `sizes` are ratio, samples, length, windows."""
    dense, tokenizer = load_model(model, device=str(device))
    calibration, text = texts["calibration"], texts["text"]
    drawn = (sizes["samples"], sizes["length"])
    tokens = token_windows(load_text(calibration, "calibration"), tokenizer, *drawn, 0, what=calibration)
    held_out = token_windows(load_text(text, "evaluation"), tokenizer, sizes["windows"], 2048, what=text)
    name, options = Path(model).name, {"ratio": sizes["ratio"], "data": dict(texts)}
    jobs = {model: lambda: precision_rows(name, dense, tokens, held_out, **options)}
    _measure("bench.precision", "default precision against float64", {**sizes, **texts}, jobs, file, device)


def scaling(
    file: Path,
    device: torch.device,
    shapes: Sequence[str],
    ranks: Sequence[int],
    models: Sequence[str],
    windows: int,
    sizes: Mapping[str, Any],
) -> None:
    """Time the same compression with each number of ranks, and compare the quality of real models; `sizes` as above.

    Raises ModegptError for more ranks than GPUs.
    """
    if device.type == "cuda" and torch.cuda.device_count() < max(ranks):
        raise ModegptError(f"{max(ranks)} ranks want as many GPUs, and this host has {torch.cuda.device_count()}")
    for shape in shapes:
        config_of(shape)
    jobs = {
        shape: lambda shape=shape: scaling_rows(
            {n: launch({"device": device.type, "shape": shape, "options": dict(sizes)}, n) for n in ranks}
        )
        for shape in shapes
    }
    for model in models:
        job = {"device": device.type, "model": model, "windows": windows, "ratio": sizes["ratio"]}
        jobs[model] = lambda job=job: quality_rows({n: launch(job, n) for n in ranks}, job["model"], job["ratio"])
    title = "compression on several GPUs"
    results = _measure("bench.scaling", title, {**sizes, "windows": windows}, jobs, file, device)
    if speed.whole_compressions(results):
        _draw(speed.scaling(results), file)


def make(source: Path, device: torch.device, shape: str, layers: int | None) -> None:
    """Make the folder that `stream` reads, unless it is there."""
    start = now()
    make_folder(source, shape, layers, device, torch.bfloat16)
    out.print(f"{source} is there, {now() - start:.0f} s")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the ranks want it


def stream(
    file: Path,
    device: torch.device,
    shape: str,
    layers: int | None,
    places: Mapping[str, Path],
    ranks: int,
    kill_after: int | None,
    sizes: Mapping[str, Any],
) -> None:
    """Stream a model of random weights from disk to disk, load the result and run it; `sizes` as above.

    `places` are "source", made if it is not there, and "target", which is removed at the end.

    Raises ModegptError for more ranks than GPUs, no such number of layers, or a source that is something else.
    """
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        raise ModegptError(f"{ranks} ranks want as many GPUs, and this host has {torch.cuda.device_count()}")
    if kill_after and kill_after >= config_of(shape, layers).num_hidden_layers:
        raise ModegptError(f"--kill-after {kill_after} is not before the end of the model")
    make(places["source"], device, shape, layers)
    job = {"device": device.type, "shape": shape, "layers": layers, **sizes}
    job |= {name: str(place) for name, place in places.items()}
    jobs = {"streamed": lambda: streamed(job, ranks, kill_after), "loaded": lambda: loaded(job, ranks)}
    settings = {**sizes, "shape": shape, "layers": layers, "ranks": ranks, "kill_after": kill_after}
    _measure("bench.stream", "a model larger than the memory, from disk to disk", settings, jobs, file, device)


def _measure(
    experiment: str,
    title: str,
    settings: Mapping[str, Any],
    jobs: dict[str, Callable[[], list[Row]]],
    file: Path,
    device: torch.device,
) -> Results:
    """Do one job after the other, and save after each; one that fails leaves a row that says why."""
    rows: list[Row] = []
    written: Path | None = None
    for name, job in jobs.items():
        out.print(f"{name} ...")
        try:
            found = job()
        except (ModegptError, RuntimeError) as error:  # lack of memory is one, also inside a solver
            reason = " ".join(str(error).split())
            err.print(f"{name}: {reason}", style="yellow")
            found = [Row(what="step", value=None, unit="s", model=name, method="modegpt", details={"error": reason})]
        rows += found
        for row in found:
            out.print(f"  {row.what}{' of ' + row.method if row.method != 'modegpt' else ''}: {_amount(row)}")
        results = Results.now(experiment, title, settings, rows, device, command_line(places=False))
        if written:
            write(results, written)
        else:
            written = save(results, file)  # beside what another machine has measured
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    out.print(f"written: {written}")
    return results


def _draw(picture: Figure, file: Path) -> None:
    keep(picture, file.with_suffix(".png"))
    out.print(f"and its picture: {file.with_suffix('.png')}")


def _amount(row: Row) -> str:
    if row.value is None:
        return "failed"
    return f"{row.value / 2**30:.2f} GiB" if row.unit == "bytes" else f"{row.value:.4g} {row.unit}".rstrip()
