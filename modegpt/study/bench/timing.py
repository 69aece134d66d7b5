"""Seconds of one run on a device: warmed up, repeated, by the device's own clock."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, stdev

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median of `repeats`, their standard deviation, the fastest and the slowest."""

    seconds: float
    deviation: float
    fastest: float
    slowest: float
    repeats: int

    def per(self, parts: int) -> "Timing":
        """The same for one of the parts that a run holds."""
        return Timing(
            self.seconds / parts, self.deviation / parts, self.fastest / parts, self.slowest / parts, self.repeats
        )


def timed(run: Callable[[], object], device: torch.device, budget: float = 0.6, least: int = 3) -> Timing:
    """Time `run` after one run that warms up, often enough to fill `budget` seconds, `least` to 20 times."""
    run()
    found = _seconds(run, device, 1)
    found += _seconds(run, device, min(max(least, round(budget / found[0])), 20) - 1)
    return Timing(median(found), stdev(found), min(found), max(found), len(found))


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(repeats):
            run()
            marks.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(events)]
