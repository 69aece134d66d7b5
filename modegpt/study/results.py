"""Results files, figures/results/*.json: one schema, checked on load; every table and picture is drawn from them.

`modegpt study check FILES` checks files, `modegpt study schema` prints the JSON schema.
"""

import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from modegpt.errors import ModegptError
from modegpt.files import to_json, write_whole

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from modegpt.evaluate import Perplexity

STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # a number in quotes is no number, nor is NaN
TIMES = ("s", "tokens/s")
STEPS = ("forward", "correlations", "mlp", "query_key", "value_output")  # of one layer, as `bench literal` times them
UNITS = {  # what can be measured -> its unit
    "perplexity": "",
    "accuracy": "share",
    "shared runs of 13 words": "share",
    "time": "s",
    "compression": "s",
    "compression: calibrate": "s",
    "compression: decompose": "s",
    "compression: measure": "s",
    "compression: correct": "s",
    "compression: save": "s",
    "compression: waiting for reads": "s",
    **{f"floor: {step}": "s" for step in ("forward", "Gram matrices", "solves", "copies")},
    **{f"share of the limit: {part}": "share" for part in ("calibrate", "decompose", "total")},
    "peak memory": "bytes",
    "peak memory above the model": "bytes",
    "peak host memory": "bytes",
    "bytes read": "bytes",
    "bytes written": "bytes",
    "load": "s",
    **{f"one layer: {step}": "s" for step in STEPS},
    "all layers": "s",
    "speed-up": "",
    "speed-up: total": "",
    "speed-up: calibrate": "",
    "speed-up: decompose": "",
    "Gram matrix against float64": "",
    "kept channels in common": "share",
    "kept dims in common": "share",
    "layers that keep the same channels and dims": "share",
    "value-output products differ": "",
    "prefill": "tokens/s",
    "decode": "tokens/s",
    "prefill kernels": "s",
    "decode kernels": "s",
    "matrix product": "s",
    "attention": "s",
    "cache error": "",
    "advised multiple_of": "",
    "size on disk": "bytes",
    "greedy tokens in common": "share",
    "log-probabilities differ": "",
    "sweep": "s",
    "step": "s",  # of a run, if it failed
}
DENSE = "dense"  # the method of a row that nothing was done to
MEAN = "mean of tasks"  # the data of a row that is one
COMMITTED = Path(__file__).resolve().parents[2] / "figures" / "results"  # of the repository that this comes from


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    `what` and `unit` are a pair of UNITS ("perplexity", ""; "accuracy", "share"; "prefill", "tokens/s"). `value` is
    None where it overflowed, or where nothing could be measured: then details["error"] says why. `spread` is the
    standard error or deviation over what `spread_over` names: windows, questions, seeds or repeats. `ratio` is the
    share of the decoder blocks' parameters that was asked to go, None where no ratio was asked. `variant` tells apart
    rows that agree in all the rest. `details` holds what else is known of the row.

    Raises:
        ValueError: nobody can have measured this: `what` is unknown, has another unit, or a number is out of range.
    """

    __pydantic_config__: ClassVar = STRICT

    what: str
    value: float | None
    unit: str
    spread: float | None = None
    spread_over: Literal["", "windows", "questions", "seeds", "repeats"] = ""
    model: str
    method: str
    ratio: float | None = None
    variant: str = ""
    data: str = ""
    seed: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if UNITS.get(self.what) != self.unit:
            known = f"is in '{UNITS[self.what]}'" if self.what in UNITS else "is not in UNITS"
            raise ValueError(f"'{self.what}' {known}, got the unit '{self.unit}'")
        low, high = 1 if self.what == "perplexity" else 0, 1 if self.unit == "share" else math.inf
        for name, found, least, most in (("value", self.value, low, high), ("spread", self.spread, 0, math.inf)):
            if found is not None and (found < least or found > most):  # one that overflowed is saved as null
                raise ValueError(f"the {name} of '{self.what}' is out of range: {found:g}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"the ratio must be in [0, 1), got {self.ratio:g}")

    @property
    def key(self) -> tuple[object, ...]:
        """What tells this row from the others of its file, and finds it in that of another machine."""
        return self.what, self.model, self.method, self.ratio, self.variant, self.data, self.seed

    @property
    def error(self) -> str | None:
        """Why there is no value, if it could not be measured."""
        return self.details.get("error")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What one command measured.

    `experiment` is the name by which findings and figures know it; `title` is for readers. `settings` are the options
    as they came out; `digest` is of all the rest of the file, so that a number changed by hand is found out (the first
    files have none); the rest says where and when.
    """

    __pydantic_config__: ClassVar = STRICT

    experiment: str
    title: str
    settings: dict[str, Any]
    rows: list[Row]
    command: str
    date: str
    device: str
    threads: int
    platform: str
    versions: dict[str, str]
    schema: Literal[1] = 1
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        twice = len(self.rows) - len({row.key for row in self.rows})
        if twice:
            raise ValueError(f"{twice} rows say the same as another: give them a variant")
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise ValueError(f"the date is not like 2026-01-31: '{self.date}'")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.experiment):
            raise ValueError(f"the experiment's name is not like bench.compress: '{self.experiment}'")

    @classmethod
    def now(
        cls,
        experiment: str,
        title: str,
        settings: Mapping[str, Any],
        rows: Iterable[Row],
        device: Any,
        command: str,
    ) -> Self:
        """Results of this moment and machine; `device` is what torch ran on."""
        from modegpt.machine import environment  # torch: checking a file needs none of it

        about = {"experiment": experiment, "title": title, "command": command, "date": today()}
        return cls(settings=dict(settings), rows=list(rows), **about, **environment(device))

    @property
    def machine(self) -> str:
        """The hardware in a file name: cpu-amd-epyc-2, or cuda-nvidia-h100-80gb-hbm3."""
        threads = f" {self.threads}" if self.device.startswith("cpu") else ""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.device}{threads}".lower()).strip("-")

    def find(self, **fields: Any) -> list[Row]:
        """The rows with these fields, as in find(what="perplexity", ratio=0.3)."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in fields.items())]


def today() -> str:
    """The date that goes into a results file."""
    return time.strftime("%Y-%m-%d")


@cache
def schema() -> "TypeAdapter[Results]":
    """What checks a results file and knows its JSON schema; made once, as that takes longer than to read a file."""
    from pydantic import TypeAdapter

    return TypeAdapter(Results)


def load(file: Path) -> Results:
    """The results in `file`.

    Raises ModegptError, which names the first thing that is wrong, for a file that does not follow the schema, or that
    was changed after it was measured.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        plain = file.read_bytes()
        found = schema().validate_json(plain)
        data = from_json(plain, allow_inf_nan=False)  # in settings and details too
    except OSError as error:
        raise ModegptError(f"cannot read the results file {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ModegptError(f"{file} is no results file: {place + ': ' if place else ''}{first['msg']}") from error
    except ValueError as error:
        raise ModegptError(f"{file} is no results file: settings or details hold NaN or Infinity") from error
    if found.digest and found.digest != _digest(data):
        raise ModegptError(f"{file} was changed after it was measured: its digest is another")
    return found


def _digest(data: Mapping[str, Any]) -> str:
    """Of what a file says, whatever its layout."""
    text = json.dumps({name: value for name, value in data.items() if name != "digest"})
    return hashlib.sha256(text.encode()).hexdigest()


def committed(name: str) -> Results:
    """The committed results of that name. Raises ModegptError if they are not there."""
    return load(COMMITTED / f"{name}.json")


def joined(first: Results, second: Results) -> Results:
    """The rows of `first`, and of `second` those of methods that `first` lacks.

    Raises ModegptError unless both were measured on the same model, texts and windows, on the same hardware.
    """
    if (first.settings, first.machine) != (second.settings, second.machine):
        raise ModegptError("only results of the same settings and hardware go into one picture")
    known = {row.method for row in first.rows}
    return replace(first, rows=[*first.rows, *(row for row in second.rows if row.method not in known)])


def save(results: Results, file: Path) -> Path:
    """Write results whole or not at all; returns the file.

    Those of another machine are never overwritten: these then go beside them, with the machine in the name.
    """
    if file.exists() and load(file).machine != results.machine:
        file = file.with_name(f"{file.stem}.{results.machine}.json")
    write(results, file)
    return file


def write(results: Results, file: Path) -> None:
    """Write results, over whatever is there."""
    data = json.loads(to_json(asdict(results)))
    write_whole(file, to_json(data | {"digest": _digest(data)}))


class Unfinished:
    """The rows of a run so far, on disk after each, so that an interrupted run goes on where it stopped."""

    def __init__(self, file: Path, settings: Mapping[str, Any], device: Any) -> None:
        """Take up the rows that a run of these very settings, on this machine, has left for `file`."""
        from modegpt.machine import environment

        self.file = file.with_name(f".{file.name}.unfinished")
        self.settings = json.loads(to_json(dict(settings) | environment(device)))
        self.rows: list[Row] = []
        try:
            saved = json.loads(self.file.read_text(encoding="utf-8"))
            if saved["settings"] == self.settings:
                self.rows = [Row(**row) for row in saved["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing left, or something else

    def add(self, *rows: Row) -> None:
        """Keep rows that belong together: after an interruption all are there or none."""
        self.rows += rows
        write_whole(self.file, to_json({"settings": self.settings, "rows": [asdict(row) for row in self.rows]}))

    def remove(self) -> None:
        """The run is finished."""
        self.file.unlink(missing_ok=True)


def deviations(mine: Results, theirs: Results) -> list[tuple[Row, Row, float]]:
    """The rows that both have, with the relative difference of their values, the largest first.

    Times and speeds are left out: another machine has others.
    """
    others = {row.key: row for row in theirs.rows}
    pairs = [(row, others[row.key]) for row in mine.rows if row.key in others and row.unit not in TIMES]
    known = [(a, b, a.value / b.value - 1) for a, b in pairs if a.value is not None and b.value]
    return sorted(known, key=lambda entry: -abs(entry[2]))


def mean_and_spread(rows: Iterable[Row]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; a single one has no deviation, its own error stands in."""
    rows = list(rows)
    values = [row.value for row in rows]
    if len(values) > 1:
        return statistics.mean(values), statistics.stdev(values)
    return values[0], rows[0].spread or 0.0


def loss_per_million(row: Row, dense: Row) -> float:
    """Added nats per token for each million parameters removed."""
    removed = (row.details["parameters_before"] - row.details["parameters_after"]) / 1e6
    return math.log(row.value / dense.value) / removed


def perplexity_row(measured: "Perplexity", details: Mapping[str, Any], **fields: Any) -> Row:
    """A row of perplexity; `fields` are those of Row that say of what."""
    found = asdict(measured)
    value, spread = found.pop("perplexity"), found.pop("standard_error")
    return Row(
        what="perplexity",
        unit="",
        value=value,
        spread=spread,
        spread_over="windows",
        details={**details, **found},
        **fields,
    )


def number(value: float | None) -> str:
    """A number for a table: two decimals, fewer where it is large; "inf" where it overflowed."""
    if value is None or not math.isfinite(value):
        return "inf"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")
