"""Seconds and memory of a whole compression, on a shape with random weights."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from modegpt.bench.shapes import random_model, random_tokens
from modegpt.pipeline import compress

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
    ratio: float = 0.3,
    samples: int = 128,
    length: int = 2048,
    batch_size: int = 8,
    walks: int = 2,
    multiple_of: int = 8,
    model: torch.nn.Module | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compress a model of that shape as the paper does: from the first calibration token to the model in memory.

    Returns:
        seconds: total, and of the steps calibrate and decompose; bytes: of the dense model, and the peak above it;
        memory: (seconds, bytes) over time; parameters, tokens and layers.
    """
    model = random_model(shape, layers, device=device) if model is None else model
    tokens = random_tokens(model.config, samples, length)
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    dense_layers = model.config.num_hidden_layers
    if device.type == "cuda":
        _warm_up(model, tokens[:1].to(device))
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with memory_trace(device) as trace:
        small, report = compress(
            model,
            tokens,
            ratio=ratio,
            batch_size=batch_size,
            walks=walks,
            multiple_of=multiple_of,
            progress=progress,
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    total = time.perf_counter() - start
    del small
    return {
        "shape": shape,
        "layers": dense_layers,
        "walks": walks,
        "ratio": report.block_ratio,
        "batch_size": batch_size,
        "tokens": tokens.numel(),
        "seconds": {"total": total} | report.seconds,
        "model_bytes": model_bytes,
        "peak_above_model_bytes": report.peak_memory_bytes - model_bytes,
        "parameters_before": report.parameters_before,
        "parameters_after": report.parameters_after,
        "memory": trace[:: max(1, len(trace) // 200)],
    }


def _warm_up(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Load the libraries whose first call takes seconds: cuBLAS, attention, cuSOLVER."""
    model(tokens, use_cache=False, logits_to_keep=1)
    small = torch.eye(64, dtype=torch.float64, device=tokens.device)
    torch.linalg.cholesky_ex(small)
    torch.linalg.eigh(small.expand(2, 64, 64))
    torch.cholesky_inverse(small)
