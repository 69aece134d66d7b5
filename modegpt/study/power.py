"""How many draws, windows or questions decide a claim: worked out from the spreads of the committed results.

A number decides if the limit between two verdicts is more than two of its standard errors away. The profile for two
cores measures what takes few of them, and leaves the rest to results of a GPU.
"""

import math
import statistics
from dataclasses import dataclass

from modegpt.study.paper_modegpt import CHANCE, PAPER_ACCURACY
from modegpt.study.results import DENSE, MEAN, Row, committed
from modegpt.study.verdicts import MARGIN, RATIO, log_ratio


@dataclass(frozen=True)
class Need:
    """What it takes to decide a claim.

    `distance` from what was measured to the limit, and `spread` of a single one of `what`, in the same unit; `most` is
    how many there are, None where more can be had.
    """

    claim: str
    what: str
    distance: float
    spread: float
    most: int | None = None

    @property
    def count(self) -> int:
        """How many, two at least: of a single one the spread is unknown."""
        return max(2, math.ceil((2 * self.spread / self.distance) ** 2))


def needs() -> list[Need]:
    """For each claim that trained weights on two cores can speak to."""
    found = [_allocation()]
    for ratio in (RATIO, 0.5):
        mine, *others = _methods("smollm2-135m.methods", ratio, "modegpt", "svd-llm", "slicegpt", "shortgpt")
        rival = min(others, key=lambda row: row.value)
        found.append(_windows(f"Better than other methods at {ratio:.0%}", mine, rival))
    rows = _methods("smollm2-135m.methods.wikitext2.h100", 0.2, "fwsvd", "svd")
    return [*found, _windows("FWSVD against plain SVD at 20%", *rows), *_questions()]


def _allocation() -> Need:
    file = committed("smollm2-135m.allocation")
    pairs = zip(*(file.find(variant=f"{kind} allocation", ratio=RATIO) for kind in ("global", "uniform")), strict=True)
    gains = [1 - mine.value / other.value for mine, other in pairs]
    return Need("Global against uniform allocation at 30%", "draws", statistics.mean(gains), statistics.stdev(gains))


def _methods(name: str, ratio: float, *methods: str) -> list[Row]:
    file = committed(name)
    return [file.find(method=method, ratio=ratio)[0] for method in methods]


def _windows(claim: str, mine: Row, rival: Row) -> Need:
    mean, error = log_ratio(mine, rival)
    return Need(claim, "windows", abs(mean - math.log(1 - MARGIN)), error * mine.details["windows"] ** 0.5)


def _questions() -> list[Need]:
    """Of each task, asked of the dense and of the compressed model; not paired, as the files keep no single answer."""
    file = committed("smollm2-135m.retention")
    (dense,) = file.find(method=DENSE, data=MEAN)
    small = file.find(ratio=RATIO, data=MEAN)[0]
    tasks = [row for row in file.rows if row.data != MEAN and row.variant in (DENSE, small.variant)]
    spread = math.sqrt(sum(row.spread**2 * row.details["items"] for row in tasks)) / (len(tasks) / 2)
    _, whole, compressed = PAPER_ACCURACY[RATIO]
    most = min(row.details["of"] for row in tasks)
    limits = {
        "Zero-shot accuracy kept at 30%": (compressed / whole - 0.05) * dense.value,
        "The same, of what lies above guessing": CHANCE + 0.5 * (dense.value - CHANCE),
    }
    return [Need(claim, "questions", abs(small.value - limit), spread, most) for claim, limit in limits.items()]
