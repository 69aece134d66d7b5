"""`make reproduce`: experiments that decide claims, and the report, in steps that are not done twice.

Each step is a command of its own, so one that fails leaves the others their turn; the report then marks it. All goes to
figures/reproduction/PROFILE.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from modegpt import console
from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.sources import load_text, resolve_model
from modegpt.study.report import read_results, timeless, write_report
from modegpt.study.results import STRICT, Row
from modegpt.study.steps import Done, Step, finished, perform

ROOT = Path("figures")
PROFILES = ("cpu", "gpu", "paper")
TEXTS = {  # name -> part, what a profile reads that is not embedded
    "cpu": {},
    "gpu": {"wikitext2:validation": "calibration", "wikitext2": "evaluation", "alpaca": "calibration"},
    "paper": {"wikitext2": "calibration", "c4": "evaluation", "alpaca": "calibration"},
}
DRAWS, WINDOWS = 3, 4  # of the profile cpu: more than `modegpt.study.power` asks for
PAPER_EXPERIMENTS = {"perplexity": "allocation", "length of windows": "windows", "tasks": "retention"}  # by step


def steps(profile: str, folder: Path, model: str | None) -> Iterator[Step]:
    """The steps of a profile, in their order: what its machine can decide, and nothing else."""
    if profile == "paper":
        return _paper(folder, model or "")
    return _gpu(folder) if profile == "gpu" else _cpu(folder)


def _cpu(folder: Path) -> Iterator[Step]:
    small = ("--plan", "small", "--seeds", str(DRAWS))
    yield _methods(folder, "modegpt,svd-llm,slicegpt,shortgpt,fwsvd,svd", "--samples", "32", "--windows", str(WINDOWS))
    yield _claims(folder, "allocation", "allocation", *small)
    yield _claims(folder, "time", "time", *small)
    sizes = ("--shape", "smollm2-135m", "--device", "cpu", "--prompt", "512", "--context", "128")
    yield _throughput(folder, *sizes, "--batches", "1", "--decode-batches", "1", "--minutes", "3")


def _gpu(folder: Path) -> Iterator[Step]:
    on = ("--device", "cuda")
    short = ("--plan", "short", *on)
    yield _claims(folder, "allocation and time", "allocation", "time", *short)
    text = ("--calibration", "wikitext2:validation", "--samples", "120", "--calibration-length", "2048")
    text += ("--text", "wikitext2", "--windows", "140", "--batch-size", "8", *on)
    yield _methods(folder, "modegpt,modegpt-plus,svd-llm,slicegpt,shortgpt,fwsvd,svd", *text)
    yield _claims(folder, "tasks", "retention", *short)
    yield _bench(folder, "compression", "jobs", "compress", "--shapes", "llama-2-7b,llama-2-13b", *on)
    yield _bench(folder, "the paper's text", "jobs", "literal", "--shapes", "llama-2-7b", *on)
    yield _throughput(folder, "--batches", "4", "--decode-batches", "1,64", "--minutes", "1.5")


def _paper(folder: Path, model: str) -> Iterator[Step]:
    for name, experiment in PAPER_EXPERIMENTS.items():
        yield _claims(folder, name, experiment, "--plan", "paper", "--model", model)


def _claims(folder: Path, name: str, *words: str) -> Step:
    return Step(name, ("study", "claims", *words, "--out", str(folder)), "modegpt.study.claims", required=True)


def _methods(folder: Path, methods: str, *options: str) -> Step:
    words = ("compare", "smollm2-135m", "--ratios", "0.2,0.3,0.5", "--methods", methods, *options)
    file = folder / "results" / "smollm2-135m.methods.json"
    return Step("every method", (*words, "--out", str(file)), "modegpt.study.compare", required=True)


def _throughput(folder: Path, *options: str) -> Step:
    what = ("--ratios", "0.3,0.5", "--steps", "prefill,decode", "--no-compiled")
    return _bench(folder, "throughput", "throughput", "throughput", *what, *options)


def _bench(folder: Path, name: str, module: str, verb: str, *options: str) -> Step:
    words = ("bench", verb, *options, "--out", str(folder / "results" / f"bench.{verb}.json"))
    return Step(name, words, f"modegpt.study.bench.{module}")


def _check_means(profile: str, model: str | None) -> None:
    """Raises ModegptError for a GPU, a model or a text that is not there, before the long part."""
    import torch

    if profile == "gpu" and not torch.cuda.is_available():
        raise ModegptError("the profile gpu takes a CUDA GPU, and torch sees none")
    if model:
        resolve_model(model)
    for text, part in TEXTS[profile].items():
        load_text(text, part)


def _place(profile: str, folder: Path | None) -> Path:
    if profile not in PROFILES:
        raise ModegptError(f"unknown profile '{profile}': use {', '.join(PROFILES)}")
    return folder or ROOT / "reproduction" / profile


def run(profile: str = "cpu", model: str | None = None, folder: Path | None = None) -> None:
    """Measure what the profile holds and write report.html and report.json.

    The profile paper takes a `model`, a hub id or a folder. By default all goes to figures/reproduction/PROFILE.

    An interrupted run goes on where it stopped. A failing step is marked in the report; the exit code is 1 if a step
    failed that the profile cannot do without.
    """
    folder = _place(profile, folder)
    if (profile == "paper") != bool(model):
        raise ModegptError("--model is for the profile paper, which needs it: a hub id or a local folder")
    _check_means(profile, model)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    elsewhere, plan, done = _known(profile), list(steps(profile, folder, model)), []
    before = {step.name: finished(step, folder) for step in plan}
    todo = [step for step in plan if isinstance(before[step.name], str)]
    for step in plan:
        if isinstance(end := before[step.name], Done):
            console.out.print(f"{step.name}: finished before, in {end.seconds:.0f} s")
        else:
            ahead = elsewhere.ahead([later.name for later in todo[todo.index(step) :]], done)
            end = perform(step, folder, end, ahead)
        done.append(end)
        report = write_report(
            folder, profile, done, ROOT / "results", elsewhere.seconds
        )  # an interrupted run has one too
    minutes, cpu = sum(step.seconds for step in done) / 60, sum(step.cpu_seconds for step in done) / 60
    console.out.print(report.summary)
    console.out.print(f"{len(done)} steps, {minutes:.1f} minutes ({cpu:.1f} of CPU); written: {report.file}")
    failed = [step.name for step, end in zip(plan, done, strict=True) if end.problem and step.required]
    if failed:
        raise ModegptError(f"failed: {', '.join(failed)}; the report marks them, and the same command tries them again")


def measured(folder: Path) -> dict[str, Row]:
    """The numbers of a run that another machine should find too, by name. Raises ModegptError if there are none."""
    found, bad = read_results(folder / "results")
    if bad:
        raise ModegptError(bad[0])
    if not found:
        raise ModegptError(f"there are no results in {folder}: run `make reproduce` first")
    return {f"{results.experiment}: {_name(row)}": row for results in found for row in timeless(results)}


@dataclass(frozen=True)
class Expected:
    """A value that a run should find, and how far from it another machine may be."""

    __pydantic_config__: ClassVar = STRICT

    value: float
    tolerance: float


@dataclass(frozen=True)
class Reference:
    """A run that others are compared with: its values by name, the seconds of its steps, and where it was."""

    __pydantic_config__: ClassVar = STRICT

    values: dict[str, Expected]
    seconds: dict[str, float] = field(default_factory=dict)
    machine: str = ""

    def ahead(self, names: list[str], done: list[Done]) -> str:
        """How long the first of these steps took there, and how long all may take at the pace of what is done here."""
        if not all(name in self.seconds for name in names):
            return ""
        here = [step for step in done if step.seconds and step.name in self.seconds and not step.problem]
        pace = sum(step.seconds for step in here) / sum(self.seconds[step.name] for step in here) if here else 1.0
        left = pace * sum(self.seconds[name] for name in names)
        return f"took {_time(self.seconds[names[0]])} on {self.machine}; all that is left: about {_time(left)}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _known(profile: str) -> Reference:
    """The reference of a profile, or an empty one."""
    file = ROOT / f"expected.{profile}.json"
    return read_expected(file) if file.exists() else Reference({})


def read_expected(file: Path) -> Reference:
    """The reference in `file`. Raises ModegptError if there is none, or one with a value that is no finite number."""
    from pydantic import TypeAdapter, ValidationError

    try:
        expected = TypeAdapter(Reference).validate_json(file.read_bytes())
    except OSError as error:
        raise ModegptError(f"there are no expected values: cannot read {file}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModegptError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not expected.values:
        raise ModegptError(f"there are no expected values in {file}")
    return expected


def _name(row: Row) -> str:
    return ", ".join(str(part) for part in row.key if part not in (None, ""))


def tolerance(row: Row) -> float:
    """What may differ on another machine: 3 % of a perplexity, two standard errors of an accuracy, and of a ruined
    model's perplexity, in which every rounding is amplified, nine tenths."""
    if row.what == "accuracy":
        return 2 * (row.spread or 0.0)
    return (0.03 if row.value < 1000 else 0.9) * row.value


def expect(profile: str = "cpu", folder: Path | None = None) -> None:
    """Make the numbers and seconds of a finished run the expected ones: figures/expected.PROFILE.json."""
    folder = _place(profile, folder)
    rows = measured(folder)
    if not rows:
        raise ModegptError("these results hold nothing that another machine should find too")
    machine = read_results(folder / "results")[0][0]
    expected = Reference(
        values={name: Expected(row.value, tolerance(row)) for name, row in rows.items()},
        seconds=_seconds(folder),
        machine=f"{machine.device}, {machine.threads} threads, {machine.date}",
    )
    file = ROOT / f"expected.{profile}.json"
    write_whole(file, json.dumps(asdict(expected), indent=1, ensure_ascii=False) + "\n")
    console.out.print(f"{len(rows)} expected values in {file}")


def _seconds(folder: Path) -> dict[str, float]:
    """How long each finished step took."""
    markers = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "steps").glob("*.json"))]
    return {marker["name"]: round(marker["seconds"], 1) for marker in markers}


def verify(profile: str = "cpu", folder: Path | None = None) -> None:
    """Compare a finished run with the expected values; fails on a difference beyond its tolerance."""
    rows = measured(_place(profile, folder))
    expected = read_expected(ROOT / f"expected.{profile}.json").values
    wrong = 0
    for name, known in expected.items():
        row = rows.get(name)
        if row is not None and abs(row.value - known.value) <= known.tolerance:
            continue
        wrong += 1
        far = row and f"{name}: {row.value:.6g}, expected {known.value:.6g} ± {known.tolerance:.2g}"
        console.err.print(far or f"missing: {name}")
    console.out.print(f"{len(expected) - wrong} of {len(expected)} values are as expected")
    if wrong:
        raise ModegptError(f"{wrong} of {len(expected)} values are missing or beyond their tolerance")
