"""The report at the end of `make reproduce`: one HTML file and the same as JSON, from results files only."""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.study.findings import findings, in_one_line, one_verdict
from modegpt.study.results import Results, Row, load, today
from modegpt.study.steps import Done
from modegpt.study.verdicts import FAILED, REPRODUCED, SHAPE, UNTESTED, WEIGHTS, Compared, Finding

TEMPLATE = "report.html.jinja"
LOOKS = {REPRODUCED: "good", SHAPE: "shape", FAILED: "bad", UNTESTED: "open"}  # verdict -> class of the badge
WIDEST = 5  # times the paper's number: where the strip of a card ends


@dataclass(frozen=True)
class Report:
    """Where a report is, and its first line."""

    file: Path
    summary: str


def read_results(folder: Path) -> tuple[list[Results], list[str]]:
    """The results files in a folder, and a line for each that fails its schema or was changed by hand."""
    found, bad = _by_file(folder)
    return list(found.values()), bad


def _by_file(folder: Path) -> tuple[dict[Path, Results], list[str]]:
    found, bad = {}, []
    for file in sorted(folder.glob("*.json")):
        try:
            found[file] = load(file)
        except ModegptError as error:
            bad.append(str(error))
    return found, bad


def write_report(
    folder: Path, profile: str, steps: Sequence[Done], committed: Path, elsewhere: Mapping[str, float] | None = None
) -> Report:
    """Write report.html and report.json into the folder of a run.

    A file of results that none of its steps has written is named and not counted, like one that fails its check.
    `elsewhere` are the seconds of the steps on another machine.
    """
    import jinja2

    run, bad = _by_file(folder / "results")
    made = {folder / name for step in steps for name in step.results}
    bad += [f"{file} was written by none of these steps" for file in run if file not in made]
    run = {file: results for file, results in run.items() if file in made}
    kit, more_bad = _by_file(committed)
    bad += more_bad
    judged = one_verdict(run.values(), kit.values())
    claims = [finding for finding in judged if finding.source]
    failed = [step.name for step in steps if step.problem]
    summary = in_one_line(claims)
    summary += f"; {_count(len(failed), 'step')} failed: {', '.join(failed)}" if failed else ""
    summary += f"; {_count(len(bad), 'results file')} left out" if bad else ""
    machines = dict.fromkeys(f"{file.device.partition(': ')[2]}, {file.threads} threads" for file in run.values())
    about: dict[str, Any] = {"summary": summary, "profile": profile, "date": today(), "machines": list(machines)}
    about |= {"versions": next(iter(run.values())).versions if run else {}, "left_out": bad}
    steps_told = [_without(asdict(step), "results") | {"elsewhere": (elsewhere or {}).get(step.name)} for step in steps]
    plain = about | {"claims": [_plain(finding) for finding in claims], "steps": steps_told}
    plain["beyond"] = [_plain(finding) for finding in judged if not finding.source]
    write_whole(folder / "report.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    files = run | kit
    second = {finding.claim: finding for finding in findings(kit.values()) if finding.verdict != UNTESTED}
    cards = [
        plain_claim
        | {"picture": _picture(finding, files), "look": LOOKS[finding.verdict]}
        | {"strips": [_strip(about) for about in finding.numbers if about.paper]}
        | {"before": _plain(second[finding.claim]) if finding.mine and finding.claim in second else None}
        for finding, plain_claim in zip(claims, plain["claims"], strict=True)
    ]
    rules = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    cards.sort(key=lambda card: card["lacking"] == WEIGHTS)  # what nobody can test without them comes last
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, **rules)
    environment.filters["sentence"] = _sentence
    tables = [(results, list(_numbers(results))) for results in run.values()]
    text = environment.get_template(TEMPLATE).render(plain | {"cards": cards, "tables": tables})
    write_whole(folder / "report.html", text)
    return Report(folder / "report.html", summary)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding without the results that it was read from."""
    numbers = [asdict(about) | {"agrees": about.agrees} for about in finding.numbers]
    names = ("claim", "source", "paper", "ours", "verdict", "tolerance", "why", "lacking", "where")
    decided_by = "" if not finding.files else "this run" if finding.mine else "the kit's results"
    return {name: getattr(finding, name) for name in names} | {"decided_by": decided_by, "numbers": numbers}


def _picture(finding: Finding, files: Mapping[Path, Results]) -> str | None:
    """Of the results that a verdict was read from: the picture of the largest file, opt-mini's last, as a data URL."""
    known = []
    for file, results in files.items():
        beside, above = file.with_suffix(".png"), file.parent.with_name(f"{file.stem}.png")
        place = beside if beside.exists() else above
        if place.exists() and any(results is used for used in finding.files):
            known.append((results.rows[0].model != "opt-mini", len(results.rows), place))
    if not known:
        return None
    return "data:image/png;base64," + base64.b64encode(max(known)[-1].read_bytes()).decode()


def _strip(about: Compared) -> dict[str, Any]:
    """Places in percent of a strip that is logarithmic and has the paper's number in the middle."""

    def place(value: float) -> float:
        times = min(max(value / about.paper, 1 / WIDEST), WIDEST)
        return 50 + 50 * math.log(times) / math.log(WIDEST)

    left, right = place(about.low), place(about.high)
    words = {"what": about.what, "ours": _short(about.ours), "paper": _short(about.paper)}
    return words | {"left": left, "width": right - left, "at": place(about.ours)}


def _sentence(text: str) -> Markup:
    """With a capital and a full stop; what stands in backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(f"{text[0].upper()}{text[1:]}."))))


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _numbers(results: Results) -> Iterator[tuple[str, ...]]:
    for row in results.rows:
        asked = "" if row.ratio is None else f"{row.ratio:.1%}"
        seed = "" if row.seed is None else str(row.seed)
        yield row.what, row.model, row.method, asked, row.variant, row.data, seed, _value(row)


def _value(row: Row) -> str:
    if row.value is None:
        return row.error or "overflowed"
    return f"{row.value:.4g} {row.unit}".strip() + (f" ± {row.spread:.2g}" if row.spread is not None else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; line breaks and bars inside cells do it no harm."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def timeless(results: Results) -> list[Row]:
    """The rows that another machine should find too."""
    return [row for row in results.rows if row.what in ("perplexity", "accuracy") and row.value is not None]
