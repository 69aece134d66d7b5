"""Where the GPU's time goes: kernels by kind, attention by head dims and backend, matrix products by width."""

import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from modegpt.study.bench.timing import Timing, timed

# The first that fits a kernel's name. A library's names differ between versions; what fits nothing is elementwise.
KINDS = {
    "attention": r"flash|fmha|sdpa|attention",
    "fused by torch.compile": r"triton",
    "matrix product": r"gemm|gemv|nvjet|cutlass|splitk|xmma|cublas",
    "gather, scatter": r"index|gather|scatter",
    "copy": r"copy|cat|memcpy|memset",
    "reduction": r"reduce|softmax|argmax",
    "elementwise": r"",
}


def kernel_profile(run: Callable[[], object]) -> dict[str, Any]:
    """The kernels of one run on the GPU: how many of each kind, their seconds, and the longest by name."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        torch.cuda.synchronize()
    on_gpu = [e for e in profiler.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    found = [(e.key, e.count, e.self_device_time_total / 1e6) for e in on_gpu]
    return by_kind(found)


def by_kind(kernels: Iterable[tuple[str, int, float]]) -> dict[str, Any]:
    """Sum (name, count, seconds) of kernels by kind, and list the ten longest."""
    kernels = sorted(kernels, key=lambda kernel: -kernel[2])
    kinds: dict[str, dict[str, float]] = {}
    for name, count, seconds in kernels:
        kind = kind_of(name)
        entry = kinds.setdefault(kind, {"count": 0, "seconds": 0.0})
        entry["count"] += count
        entry["seconds"] += seconds
    return {
        "kernels": sum(count for _, count, _ in kernels),
        "kernel_seconds": sum(seconds for *_, seconds in kernels),
        "kinds": kinds,
        "attention_kernels": [name[:120] for name, *_ in kernels if kind_of(name) == "attention"],
        "longest": [{"name": name[:120], "count": count, "seconds": s} for name, count, s in kernels[:16]],
    }


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))


@dataclass(frozen=True)
class AttentionCase:
    """Attention of one layer: a prompt (`context` queries, causal) or one query over a static cache with its mask."""

    phase: str
    batch: int
    heads: int
    context: int
    query_key: int
    value: int

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Queries, keys and values, (batch, heads, tokens, dims), laid out as in the model, and the other arguments."""
        queries = self.context if self.phase == "prefill" else 1

        def states(tokens: int, dims: int) -> Tensor:
            return torch.randn(self.batch, tokens, self.heads, dims, device=device, dtype=dtype).transpose(1, 2)

        query, key = states(queries, self.query_key), states(self.context, self.query_key)
        value, options = states(self.context, self.value), {"scale": 128**-0.5}
        if self.phase == "prefill":
            return (query, key, value), options | {"is_causal": True}
        mask = torch.arange(self.context, device=device) < self.context - 1
        return (query, key.contiguous(), value.contiguous()), options | {"attn_mask": mask.expand(self.batch, 1, 1, -1)}


BACKENDS = {
    "chosen": None,  # what torch takes by itself
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def attention_profile(case: AttentionCase, backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The kernels of one case and one backend, their inputs still cached from the call before.

    Raises:
        RuntimeError: with the reason, where that backend refuses.
    """
    inputs, options = case.inputs(device, dtype)
    only = nullcontext() if BACKENDS[backend] is None else sdpa_kernel(BACKENDS[backend])
    attend = partial(nn.functional.scaled_dot_product_attention, *inputs, **options)
    with only, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            attend()
        except RuntimeError as error:
            reasons = [str(warning.message).split(" (Triggered")[0] for warning in said]
            refusals = [reason for reason in reasons if "require" in reason or "support" in reason]
            raise RuntimeError("; ".join(refusals) or str(error)) from error
        return kernel_profile(attend)


def linear_timing(tokens: int, fan_in: int, fan_out: int, device: torch.device, dtype: torch.dtype) -> Timing:
    """Time the product of `tokens` states with a matrix; several matrices take turns, so that none stays cached."""
    weights = [torch.randn(fan_out, fan_in, device=device, dtype=dtype) for _ in range(4)]
    states = torch.randn(tokens, fan_in, device=device, dtype=dtype)
    return timed(lambda: [nn.functional.linear(states, weight) for weight in weights], device, 0.05).per(len(weights))
