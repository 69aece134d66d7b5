"""`make reproduce`: notebooks, comparison, claims, pictures and the report, in steps that are not done twice.

Each step is a command of its own, so one that fails leaves the others their turn; the report then marks it. All goes to
figures/reproduction/PROFILE.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

from modegpt import console
from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.study.report import read_results, timeless, write_report
from modegpt.study.results import STRICT, Row
from modegpt.study.steps import Step, perform

ROOT = Path("figures")
PROFILES = ("cpu", "gpu", "paper")
WIKITEXT = ("--calibration", "wikitext2:validation", "--text", "wikitext2", "--samples", "120")


def steps(profile: str, folder: Path, model: str | None) -> Iterator[Step]:
    """The steps of a profile, in their order."""
    out = ("--out", str(folder))
    if profile == "paper":
        name = model or ""
        plan = ("study", "claims", "windows", "allocation", "retention", "--plan", "paper", "--model", name, *out)
        yield Step("the paper's protocol", plan, "modegpt.study.claims", required=True)
        return
    full = profile == "gpu"
    ratios = ("--ratios", "0.1,0.3,0.5", "--windows", "8")
    if full:
        ratios = (*WIKITEXT, "--calibration-length", "2048", "--windows", "140")
    words = ("study", "ratios", "--model", "smollm2-135m", *ratios, *out)
    yield Step("every ratio", words, "modegpt.study.ratios", required=True)
    file = folder / "results" / ("smollm2-135m.methods.json" if full else "opt-mini.methods.json")
    methods = ("compare", "opt-mini", "--ratios", "0.3", "--methods", "modegpt,svd-llm,slicegpt,shortgpt")
    if full:
        methods = ("compare", "smollm2-135m", *WIKITEXT, "--calibration-length", "2048", "--windows", "140")
    yield Step("every method", (*methods, "--out", str(file)), "modegpt.study.compare")
    words = ("study", "claims", "--plan", "full" if full else "small", *out)
    yield Step("claims", words, "modegpt.study.claims", required=True)
    if full:
        for bench, name in (("compress", "compression"), ("throughput", "throughput")):
            words = ("bench", bench, "--out", str(folder / "results" / f"{name}.json"))
            yield Step(name, words, "modegpt.study.bench.jobs")
    for notebook in _notebooks():
        target = str(folder / "notebooks")
        words = ("course", "run", notebook, "--profile", "cpu", "--out", target)
        yield Step(f"notebook {notebook}", words, "modegpt.course.commands", Path("notebooks", f"{notebook}.ipynb"))


def _notebooks() -> list[str]:
    """Those that the notebooks' own profile for two cores lists and that are there."""
    try:
        listed = yaml.safe_load(Path("notebooks/profiles.yml").read_text(encoding="utf-8"))["cpu"]
    except (OSError, yaml.YAMLError, KeyError):
        return []
    return [name for name in listed if Path("notebooks", f"{name}.ipynb").exists()]


def _place(profile: str, folder: Path | None) -> Path:
    if profile not in PROFILES:
        raise ModegptError(f"unknown profile '{profile}': use {', '.join(PROFILES)}")
    return folder or ROOT / "reproduction" / profile


def run(profile: str = "cpu", model: str | None = None, folder: Path | None = None) -> None:
    """Measure what the profile holds and write report.md and report.html.

    The profile paper takes a `model`, a hub id or a folder. By default all goes to figures/reproduction/PROFILE.

    An interrupted run goes on where it stopped. A failing step is marked in the report; the exit code is 1 if a step
    failed that the profile cannot do without.
    """
    folder = _place(profile, folder)
    if (profile == "paper") != bool(model):
        raise ModegptError("--model is for the profile paper, which needs it: a hub id or a local folder")
    plan, done = list(steps(profile, folder, model)), []
    for step in plan:
        done.append(perform(step, folder))
        report = write_report(folder, profile, done, ROOT / "results")  # so an interrupted run has one too
    minutes = sum(step.seconds for step in done) / 60
    console.out.print(f"{len(done)} steps, {minutes:.1f} minutes in all; written: {report} and report.md")
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


def read_expected(file: Path) -> dict[str, Expected]:
    """The expected values in `file`. Raises ModegptError if there is none, or one that is no finite number."""
    from pydantic import TypeAdapter, ValidationError

    try:
        expected = TypeAdapter(dict[str, Expected]).validate_json(file.read_bytes())
    except OSError as error:
        raise ModegptError(f"there are no expected values: cannot read {file}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModegptError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not expected:
        raise ModegptError(f"there are no expected values in {file}")
    return expected


def _name(row: Row) -> str:
    return ", ".join(str(part) for part in row.key if part not in (None, ""))


def tolerance(row: Row) -> float:
    """What may differ on another machine: 3 % of a perplexity, two standard errors of an accuracy, no count."""
    if row.what == "accuracy":
        return 2 * (row.spread or 0.0)
    return 0.03 * abs(row.value) if row.unit == "" else 0.0


def expect(profile: str = "cpu", folder: Path | None = None) -> None:
    """Make the numbers of a finished run the expected ones: figures/expected.PROFILE.json."""
    rows = measured(_place(profile, folder))
    if not rows:
        raise ModegptError("these results hold nothing that another machine should find too")
    expected = {name: {"value": row.value, "tolerance": tolerance(row)} for name, row in rows.items()}
    write_whole(ROOT / f"expected.{profile}.json", json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    console.out.print(f"{len(expected)} expected values in {ROOT}/expected.{profile}.json")


def verify(profile: str = "cpu", folder: Path | None = None) -> None:
    """Compare a finished run with the expected values; fails on a difference beyond its tolerance."""
    rows = measured(_place(profile, folder))
    expected = read_expected(ROOT / f"expected.{profile}.json")
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
