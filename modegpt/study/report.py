"""The report at the end of `make reproduce`, as Markdown and as one HTML file, from results files only."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.study.findings import UNTESTED, Finding, findings
from modegpt.study.results import TIMES, Results, load, today

HONESTY = """\
The embedded SmolLM2 has 135 million parameters and comes from a 4-bit file; "dense" means those weights.

- It **can** show that the code does what the theorems say, which of two variants of the method is better on it, what a
  step costs and gains, how far a result depends on text, size and seed of the calibration, and how seconds divide.
- It **cannot** show how much a 7B model loses: that has far more redundancy, and so loses less at the same ratio. Nor
  can it show the order of methods there, nor its zero-shot level: several tasks are near guessing for a small model,
  and a share of accuracy "kept" flatters where guessing already gives 35 %.
- Rounding to 4 bits has already spent some of the redundancy that compression lives on.

So we never call a paper number on LLaMA reproduced on this model: at most in shape, the same direction by a measured
amount. `make reproduce PROFILE=paper MODEL=...` puts the same questions to the paper's models.
"""
CSS = """body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:14px}td,th{border:1px solid #ccc;padding:.3em .6em;vertical-align:top}
th{background:#f3f3f3;text-align:left}img{max-width:100%}code{background:#f3f3f3;padding:0 .2em}"""


@dataclass(frozen=True)
class Done:
    """How one step of a run ended; `problem` is None if all went well."""

    name: str
    command: str
    seconds: float
    problem: str | None = None


def read_results(folder: Path) -> tuple[list[Results], list[str]]:
    """The results files in a folder, and a line for each that fails its schema."""
    found, bad = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(load(file))
        except ModegptError as error:
            bad.append(str(error))
    return found, bad


def write_report(folder: Path, profile: str, steps: Sequence[Done], committed: Path) -> Path:
    """Write report.md and report.html into the folder of a run; returns the HTML file."""
    mine, bad = read_results(folder / "results")
    before, more_bad = read_results(committed)
    text = report_markdown(folder, profile, steps, mine, before, bad + more_bad)
    write_whole(folder / "report.md", text)
    write_whole(folder / "report.html", as_html(text, folder))
    return folder / "report.html"


def report_markdown(
    folder: Path, profile: str, steps: Sequence[Done], mine: list[Results], before: list[Results], bad: list[str]
) -> str:
    """The whole report; pictures are named relative to the folder."""
    machines = ", ".join(dict.fromkeys(f"{r.device} ({r.threads} threads)" for r in mine)) or "nothing was measured"
    versions = mine[0].versions if mine else {}
    about = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "python") if name in versions)
    parts = ["# Reproduction report", f"Profile `{profile}`, {today()}. {machines}. {about}."]
    parts += ["## Claims of the paper", _claims(findings(mine), findings(before))]
    parts += [
        "The paper's numbers were read in copies of it. *Measured before* are the results that come with the kit."
    ]
    parts += ["## Measured beyond the paper", _more(findings(mine), findings(before))]
    parts += ["## What a small model can say", HONESTY]
    pictures = sorted(folder.glob("*.png")) + sorted((folder / "results").glob("*.png"))
    if pictures:
        parts += ["## Pictures", *(f"![{p.stem}]({p.relative_to(folder).as_posix()})" for p in pictures)]
    parts += ["## Steps", table(("step", "seconds", "state", "command"), [_step(step) for step in steps])]
    for line in bad:
        parts.append(f"**Left out:** {_one_line(line)}")
    parts += ["## All numbers", *(_numbers(results) for results in mine)]
    return "\n\n".join(parts) + "\n"


def _claims(mine: list[Finding], before: list[Finding]) -> str:
    rows = []
    for ours, theirs in zip(mine, before, strict=True):
        if ours.verdict == "" or theirs.verdict == "":
            continue
        elsewhere = "" if theirs.verdict == UNTESTED else f"{theirs.ours}: {theirs.verdict}; {theirs.why}"
        rows.append((ours.claim, ours.paper, ours.ours, ours.tolerance, f"**{ours.verdict}**", ours.why, elsewhere))
    return table(("claim", "paper", "ours, this run", "tolerance", "verdict", "why", "measured before"), rows)


def _more(mine: list[Finding], before: list[Finding]) -> str:
    rows = []
    for ours, theirs in zip(mine, before, strict=True):
        if ours.verdict == "" or theirs.verdict == "":
            rows.append((ours.claim, ours.paper, ours.ours or f"{ours.verdict}: {ours.why}", theirs.ours))
    return table(("question", "paper", "this run", "measured before"), rows) if rows else "Nothing."


def _step(step: Done) -> tuple[str, ...]:
    state = "finished" if step.problem is None else f"**failed**: {_one_line(step.problem)}"
    return step.name, f"{step.seconds:.0f}", state, f"`{step.command}`"


def _numbers(results: Results) -> str:
    rows = []
    for row in results.rows:
        value = row.error or ("overflowed" if row.value is None else f"{row.value:.4g} {row.unit}".strip())
        spread = f" ± {row.spread:.2g}" if row.spread is not None and row.value is not None else ""
        asked = "" if row.ratio is None else f"{row.ratio:.1%}"
        seed = "" if row.seed is None else str(row.seed)
        rows.append((row.what, row.model, row.method, asked, row.variant, row.data, seed, value + spread))
    head = f"### {results.title}\n\n`{results.command}`, {results.device}, {results.date}\n\n"
    return head + table(("what", "model", "method", "ratio", "variant", "data", "seed", "value"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; line breaks and bars inside cells do it no harm."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def as_html(markdown: str, folder: Path) -> str:
    """One HTML file with its pictures inside."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^":]+\.png)"', inline, body)
    head = f'<meta charset="utf-8"><title>MoDeGPT</title><style>{CSS}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def timeless(results: Results) -> list:
    """The rows that another machine should find too."""
    return [row for row in results.rows if row.unit not in TIMES and row.value is not None]
