"""What a verdict is made of: the rows that it rests on, the numbers that it compares, and a rule for each claim.

The rules are in `paper_modegpt` and `paper_fwsvd`; `findings` applies them.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modegpt.study.results import Results, Row, number

REPRODUCED, SHAPE, FAILED = "reproduced", "reproduced in shape", "not reproduced"
UNTESTED = "not testable here"
WEIGHTS = "the paper's weights"  # what a test may lack
RATIO = 0.3
MARGIN = 0.05  # a lead over another method that counts; draws of the calibration text differ by half of it
SMALL = "another model: 135 M parameters, 4-bit weights"


@dataclass(frozen=True)
class Compared:
    """A number of the paper's beside ours. From `low` to `high` ours would agree with the claim."""

    what: str
    paper: float
    ours: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Whether ours lies there."""
        return self.low <= self.ours <= self.high


@dataclass(frozen=True)
class Finding:
    """What results say of a claim. Without a number of the paper's there is no verdict.

    `source` is whose claim it is, "" for a question of ours; `numbers` are what the verdict rests on, where both sides
    have one; `files` the results that it was read from; `lacking` what a test would need, where that has a name.
    """

    claim: str
    paper: str
    ours: str
    verdict: str
    tolerance: str = ""
    why: str = ""
    numbers: tuple[Compared, ...] = ()
    source: str = "MoDeGPT"
    lacking: str = ""
    files: tuple[Results, ...] = ()
    mine: bool = False  # from the run that the report is about, not from the results that come with the kit

    @property
    def where(self) -> str:
        """Machine and date of the results that the verdict was read from."""
        return "; ".join(sorted({f"{file.device.partition(': ')[2]}, {file.date}" for file in self.files}))


class Missing(Exception):
    """What a claim needs was not measured, or not well enough; the message says what, `lacking` what has a name."""

    def __init__(self, message: str, lacking: str = "") -> None:
        super().__init__(message)
        self.lacking = lacking


@dataclass(frozen=True)
class Evidence:
    """The rows of several results files, those without a value left out. Files that gave rows go into `used`."""

    files: list[Results]
    used: list[Results] = field(default_factory=list)

    def all_of(self, *experiments: str) -> "Evidence":
        """The files of these experiments. Raises Missing if there are none."""
        files = [file for file in self.files if file.experiment in experiments]
        if not files:
            raise Missing("it was not measured")
        return Evidence(files, self.used)

    def of(self, experiment: str) -> "Evidence":
        """One of these files, so that nothing is averaged over models or machines: the largest, opt-mini's last."""

        def rank(file: Results) -> tuple[bool, int]:
            return file.rows[0].model != "opt-mini" if file.rows else False, len(file.rows)

        return Evidence([max(self.all_of(experiment).files, key=rank)], self.used)

    def rows(self, **fields: Any) -> list[Row]:
        """Rows with these fields. Raises Missing, with the reason if one is known, if there are none."""
        known = [(file, row) for file in self.files for row in file.find(**fields)]
        found = [(file, row) for file, row in known if row.value is not None]
        if not found:
            raise Missing(next((row.error for _, row in known if row.error), "it was not measured"))
        for file, _ in found:
            self.used.append(file)
        return [row for _, row in found]

    def tables(self, **fields: Any) -> list[dict[str, Row]]:
        """The rows of each method, a table for each file, model and text: rows of two runs are never compared."""
        found: dict[tuple[int, str, str], dict[str, Row]] = {}
        self.rows(**fields)  # or what is missing
        for at, file in enumerate(self.files):
            for row in file.find(**fields):
                if row.value is not None:
                    found.setdefault((at, row.model, row.data), {})[row.method] = row
        return [*found.values()]

    def mean(self, **fields: Any) -> tuple[float, float]:
        """Mean and standard deviation over the seeds of these rows."""
        values = [row.value for row in self.rows(**fields)]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def toy(row: Row) -> bool:
    """Whether this model is one that the kit trained: too small to decide a claim where there is another."""
    return row.model.endswith("-mini")


Judge = Callable[[Evidence], dict[str, Any]]
JUDGES: dict[tuple[str, str, str], Judge] = {}  # (claim, the paper's number, whose) -> its rule, in the report's order


def claims(claim: str, paper: str, source: str = "MoDeGPT") -> Callable[[Judge], Judge]:
    """Put the function that follows into JUDGES."""

    def entered(judge: Judge) -> Judge:
        JUDGES[claim, paper, source] = judge
        return judge

    return entered


def asks(question: str, paper: str) -> Callable[[Judge], Judge]:
    """Enter a question to which the paper has no number, or none that could be read: no claim and so nobody's."""
    return claims(question, paper, source="")


def with_spread(mean: float, spread: float) -> str:
    """A mean with the deviation over its draws; of a single draw that is unknown."""
    return f"{number(mean)} ± {spread:.2f}" if spread else number(mean)


def verdict(same: bool, alike: bool) -> str:
    """`same`: the paper's number, on its model. `alike`: the same direction is all there is."""
    return REPRODUCED if same else SHAPE if alike else FAILED


def measured_on(row: Row) -> str:
    """What the numbers are of."""
    return SMALL if row.model == "smollm2-135m" else f"measured on {row.model}"


def log_ratio(row: Row, other: Row) -> tuple[float, float]:
    """Log of the ratio of two perplexities, and its standard error; paired where both kept the loss of each window."""
    mine, theirs = row.details.get("losses"), other.details.get("losses")
    mean = math.log(row.value / other.value)
    if mine and theirs and len(mine) == len(theirs) > 1:
        return mean, statistics.stdev(a - b for a, b in zip(mine, theirs, strict=True)) / len(mine) ** 0.5
    return mean, math.hypot(*((part.spread or 0.0) / part.value for part in (row, other)))


def kept_error(dense: Sequence[Row], small: Sequence[Row], kept: float) -> float:
    """Standard error of the mean over the tasks of (small - kept * dense), where `kept` brings that mean to zero.

    By the delta method it is, divided by the dense mean, that of the share that is kept. Rows of accuracy, a task each,
    in one order; paired by question where both models kept which they answered right.
    """
    variance = 0.0
    for whole, part in zip(dense, small, strict=True):
        both = [row.details.get("right", "") for row in (whole, part)]
        if len(both[0]) == len(both[1]) > 1:
            rest = [int(mine) - kept * int(theirs) for theirs, mine in zip(*both, strict=True)]
            variance += statistics.variance(rest) / len(rest)
        else:
            variance += part.spread**2 + (kept * whole.spread) ** 2
    return math.sqrt(variance) / len(dense)


def decided(distance: float, error: float, what: str, lacking: str = "") -> None:
    """Raises Missing if a number lies within two of its standard errors of the limit that decides."""
    if abs(distance) < 2 * error:
        raise Missing(f"{what}: the limit is within two standard errors", lacking)
