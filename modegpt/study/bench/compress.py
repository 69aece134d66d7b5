"""Seconds and memory of a whole compression, on a shape with random weights."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from modegpt import parallel
from modegpt.machine import environment, now
from modegpt.pipeline import compress
from modegpt.streaming import compress_folder
from modegpt.study.bench.shapes import config_of, random_model, random_tokens
from modegpt.study.results import Row

PROBE_SECONDS = 0.05


@contextmanager
def memory_trace(device: torch.device) -> Iterator[list[tuple[float, int]]]:
    """Collect (seconds since the start, bytes in use) while the block runs: of the GPU, or of this process."""
    trace: list[tuple[float, int]] = []
    start, stop, process = time.perf_counter(), threading.Event(), psutil.Process()

    def probe() -> None:
        while not stop.wait(PROBE_SECONDS):
            used = torch.cuda.memory_allocated(device) if device.type == "cuda" else process.memory_info().rss
            trace.append((time.perf_counter() - start, used))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield trace
    finally:
        stop.set()
        thread.join()


def time_compression(
    shape: str,
    device: torch.device,
    *,
    layers: int | None = None,
    stream: bool = False,
    samples: int = 128,
    length: int = 2048,
    **options: Any,
) -> dict[str, Any]:
    """Compress a model of that shape as the paper does: from the first calibration token to the model in memory.

    Args:
        layers: of the model, if not all of the shape's.
        stream: write the model to disk first, then read one layer at a time; seconds are those from the first token
            to the checkpoint on disk.
        options: of `pipeline.compress`.

    Returns:
        seconds: "total", and of its steps; model_bytes; peak_bytes of all memory in use;
        memory, (seconds, bytes) over time; ratio that came out; kept, a checksum of every layer's kept channels and
        dims; layers and of_layers; on several ranks peak_bytes is a list.
    """
    model = random_model(shape, layers, device=device)
    tokens = random_tokens(model.config, samples, length)
    facts = {"shape": shape, "layers": model.config.num_hidden_layers, "tokens": tokens.numel(), "options": options}
    facts["of_layers"] = config_of(shape).num_hidden_layers
    facts["model_bytes"] = sum(p.numel() * p.element_size() for p in model.parameters())
    warm_up(model, tokens[:1])
    with tempfile.TemporaryDirectory() as folder:
        if stream:
            model.save_pretrained(Path(folder) / "dense")
            del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        parallel.gather(None)  # all ranks start together
        start = now()
        with memory_trace(device) as trace:
            if stream:
                made = random_facts(shape, samples, length, device)
                place = {"device": device, "dtype": torch.bfloat16, "facts": made}
                report = compress_folder(Path(folder, "dense"), Path(folder, "small"), tokens, None, **place, **options)
            else:
                small, report = compress(model, tokens, **options)
            facts["seconds"] = {"total": now() - start} | report.seconds
    if not stream:
        facts["kept"] = [kept_checksum(layer) for layer in family_layers(small)]
    peaks = parallel.gather(report.peak_memory_bytes)
    facts["peak_bytes"] = peaks[0] if len(peaks) == 1 else peaks
    return facts | {"ratio": report.block_ratio, "memory": trace[:: max(1, len(trace) // 200)]}


def random_facts(shape: str, samples: int, length: int, device: torch.device) -> dict[str, Any]:
    """What a checkpoint with random weights says of itself."""
    made = {"model": shape, "calibration": "random tokens", "seed": 0, "samples": samples, "seq_len": length}
    return made | environment(device) | {"command": "modegpt bench", "dtype": "bfloat16"}


def compression_rows(found: dict[str, Any], variant: str) -> list[Row]:
    """The rows of a results file: seconds of the whole and of its steps, and the peak of memory above the model."""
    details = {name: value for name, value in found.items() if name not in ("seconds", "shape", "kept")}
    fields = {"model": found["shape"], "method": "modegpt", "ratio": found["options"]["ratio"], "variant": variant}
    fields |= {"data": "random tokens", "seed": 0}
    rows = [Row(what="compression", value=found["seconds"]["total"], unit="s", details=details, **fields)]
    for step in ("calibrate", "measure", "decompose", "correct"):
        if step in found["seconds"]:
            rows.append(Row(what=f"compression: {step}", value=found["seconds"][step], unit="s", **fields))
    peaks = found["peak_bytes"] if isinstance(found["peak_bytes"], list) else [found["peak_bytes"]]
    streamed = "stream" in variant
    what = "peak memory" if streamed else "peak memory above the model"
    above = max(peaks) - (0 if streamed else found["model_bytes"])
    return [*rows, Row(what=what, value=float(above), unit="bytes", **fields)]


def family_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a compressed model."""
    return model.get_decoder().layers


def warm_up(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Load the libraries whose first call takes seconds: cuBLAS, attention, cuSOLVER."""
    model(tokens.to(model.device), use_cache=False, logits_to_keep=1)
    small = torch.eye(64, dtype=torch.float64, device=model.device)
    factor = torch.linalg.cholesky_ex(small)[0]
    torch.cholesky_solve(small, factor)
    torch.linalg.eigh(small.expand(2, 64, 64).clone())
    torch.linalg.solve_triangular(factor, small, upper=False)


def kept_checksum(layer: torch.nn.Module) -> float:
    """Of the weights that are copied, not solved for: equal where the same channels and dims were kept."""
    solved = ("down_proj", "fc2", "v_proj", "o_proj", "out_proj")
    weights = [p for name, p in layer.named_parameters() if not any(part in name for part in solved)]
    return sum(weight.sum(dtype=torch.float64).item() for weight in weights)
