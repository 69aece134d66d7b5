"""What a run reports: sizes, ranks, seconds, memory, and what it ran on."""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch
from torch import nn

from modegpt.allocate import LayerShape, Ranks
from modegpt.calibrate import few_tokens

T = TypeVar("T")


class Stopwatch:
    """Seconds per named step; waits for the GPU, so that its work is counted where it was asked for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = now()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + now() - start

    def iterate(self, step: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items and count the time that making them takes."""
        iterator, end = iter(items), object()
        while True:
            with self(step):
                item = next(iterator, end)
            if item is end:
                return
            yield item
            del item  # it may hold gigabytes that the next one needs


def now() -> float:
    """Seconds; waits for the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class LayerReport:
    """One compressed layer, calibrated on so many tokens. `damping`: the largest that a Cholesky factor needed."""

    ranks: Ranks
    sparsity: float
    block_influence: float
    damping: float
    tokens: int


@dataclass
class Report:
    """What `compress` did. Ratios are shares removed: of the block matrices, and of all parameters of the model."""

    method: str
    requested_ratio: float
    settings: dict[str, object]
    parameters_before: int
    block_parameters_before: int
    parameters_after: int = 0
    block_parameters_after: int = 0
    tokens: int = 0
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)

    def add_layers(self, layers: list[LayerReport], shape: LayerShape) -> None:
        """Note what became of all layers, in order, and whether their tokens determine the Gram matrices."""
        self.layers, self.tokens = layers, layers[0].tokens
        kept = [layer.ranks for layer in self.layers]
        self.block_parameters_after = sum(shape.parameters(r.query_key, r.value, r.mlp) for r in kept)
        if few_tokens(self.tokens, shape.mlp) and any(r.mlp < shape.mlp for r in kept):
            self.warnings.append(
                f"{self.tokens} calibration tokens hardly determine the Gram matrix of {shape.mlp} MLP "
                "channels, so its regression was damped: expect poor quality, use at least ten tokens a channel"
            )

    @property
    def block_ratio(self) -> float:
        """Share of the block matrices' parameters that is gone."""
        return 1 - self.block_parameters_after / self.block_parameters_before

    @property
    def model_ratio(self) -> float:
        """Share of all the model's parameters that is gone, embeddings and norms included."""
        return 1 - self.parameters_after / self.parameters_before

    def to_dict(self) -> dict[str, object]:
        """Everything as plain JSON types."""
        plain = asdict(self)
        layers = plain.pop("layers")
        plain |= {"block_ratio": self.block_ratio, "model_ratio": self.model_ratio}
        if not layers:  # a method that has no ranks of MoDeGPT's three modules
            return plain
        return plain | {
            "ranks": [layer["ranks"] for layer in layers],
            "sparsity": [layer["sparsity"] for layer in layers],
            "block_influence": [layer["block_influence"] for layer in layers],
            "damping": [layer["damping"] for layer in layers],
        }

    def __str__(self) -> str:
        before, after = self.parameters_before / 1e6, self.parameters_after / 1e6
        return (
            f"{self.method}: {self.block_ratio:.1%} of the block parameters gone ({self.requested_ratio:.1%} asked), "
            f"{self.model_ratio:.1%} of the whole model: {before:.1f} M -> {after:.1f} M parameters, "
            f"{self.tokens:,} calibration tokens"
        )


def to_json(results: Mapping[str, object]) -> str:
    """Strict JSON, which has neither NaN nor infinity: both become null."""
    plain = json.loads(json.dumps(results), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1) + "\n"


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory_bytes() -> int:
    """Peak memory of this process so far: of the GPU if one is in use, else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`, not `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def environment(device: str | torch.device) -> dict[str, object]:
    """Versions and hardware, to go with every number."""
    device = torch.device(device)
    packages = ("modegpt", "torch", "transformers", "safetensors", "datasets", "numpy")
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": f"{device.type}: {hardware}",
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | _versions(packages),
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):  # run from a checkout, or without what this run did not need
            found[name] = version(name)
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
