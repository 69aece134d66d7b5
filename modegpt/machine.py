"""The machine a number was measured on: seconds that wait for the GPU, peak memory, versions and hardware."""

import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
CONTROL_GROUP = Path("/sys/fs/cgroup")


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


def peak_memory_bytes() -> int:
    """Peak memory of this process so far: of the GPU if one is in use, else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_host_bytes()


def free_host_bytes() -> int:
    """Memory of the host that this process may still take, as far as its control group (a container) lets it."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control groups, or one without a limit
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def peak_host_bytes() -> int:
    """The most that was resident of this process so far, files that are mapped into it included."""
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
