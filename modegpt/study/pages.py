"""Pages whose numbers come from figures/results: README.md and some of docs, made from docs/templates.

A template is the page itself, with an expression between << and >> where a number stands: `value`, `mean`, `row` and
`of` read a results file by its name, `claim` what it says of the paper, and `supported` names the models. A number that
is chosen or quoted, and so in no results file, is written `<< given("3 GB") >>`.
"""

import json
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

from modegpt.families import supported
from modegpt.files import write_whole
from modegpt.study.experiments import EXPERIMENTS, PLANS
from modegpt.study.figures import perplexity_against_parameters
from modegpt.study.findings import findings
from modegpt.study.fwsvd_task import summary
from modegpt.study.paper_fwsvd import leads, over_guessing
from modegpt.study.paper_modegpt import CHANCE, above_guessing
from modegpt.study.power import needs
from modegpt.study.report import read_results
from modegpt.study.reproduce import PAPER_EXPERIMENTS
from modegpt.study.results import COMMITTED, Results, Row, joined, number
from modegpt.study.results import committed as read_committed
from modegpt.study.verdicts import Finding
from modegpt.style import keep

committed = cache(read_committed)  # the pages quote each file many times
ROOT = COMMITTED.parents[1]
TEMPLATES = ROOT / "docs" / "templates"
OPT_MINI = ROOT / "modegpt" / "assets" / "opt-mini"
FIRST_PICTURE = ROOT / "figures" / "smollm2-135m.all-methods.wikitext2.h100.png"


def refresh_pages(root: Path = ROOT) -> list[Path]:
    """Write every page that has a template, if it is not up to date; returns those that were not."""
    stale = {root / name: text for name, text in pages() if _read(root / name) != text}
    for file, text in stale.items():
        write_whole(file, text)
    return list(stale)


def draw_first_picture(file: Path = FIRST_PICTURE) -> Path:
    """Draw the picture on top of README.md, from the two files that hold all methods."""
    found = joined(*(committed(f"smollm2-135m.methods.{name}") for name in ("wikitext2.h100", "plus.wikitext2.h100")))
    keep(perplexity_against_parameters(found), file)
    return file


def pages() -> Iterator[tuple[str, str]]:
    """(name, text) of every page that has a template: docs/templates/docs/gpus.md makes docs/gpus.md.

    Raises:
        LookupError: an expression asks for what the results files do not hold, or not once.
    """
    import jinja2

    brackets = {"variable_start_string": "<<", "variable_end_string": ">>"}
    brackets |= {"block_start_string": "<%", "block_end_string": "%>", "comment_start_string": "<#"}
    rules = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, comment_end_string="#>", **brackets, **rules)
    environment.filters |= {"n": number, "as": lambda value, form: format(value, form).replace("%", " %")}
    known = (value, mean, row, claim, rival, gib, summary, above_guessing, files, pictures, supported, needs, lead_of)
    environment.globals |= {function.__name__: function for function in known}
    environment.globals |= {
        function.__name__: function for function in (took, seconds_of, without_seconds, paper_compressions, leads)
    }
    opt_mini = json.loads((OPT_MINI / "training.json").read_text(encoding="utf-8"))
    environment.globals |= {"of": committed, "given": str, "CHANCE": CHANCE, "PLANS": PLANS, "opt_mini": opt_mini}
    for name in sorted(environment.list_templates()):
        yield name, wrapped(environment.get_template(name).render())


def wrapped(text: str) -> str:
    """Markdown with its paragraphs filled again, as numbers have other lengths than expressions."""
    parts = re.split(r"(^```.*?^```$)", re.sub(r" +$", "", text, flags=re.M), flags=re.M | re.S)
    for index, part in enumerate(parts[::2]):
        blocks = re.split(r"(\n{2,}|\n(?=- ))", part)
        for place, block in enumerate(blocks):
            if re.match(r"[\w*`\[(]|- ", block) and "\n|" not in block:
                indent = "  " if block.startswith("- ") else ""
                filled = fill(
                    " ".join(block.split()),
                    120,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                blocks[place] = filled + "\n" * block.endswith("\n")
        parts[2 * index] = "".join(blocks)
    return "".join(parts)


def committed_rows(name: str, **fields: Any) -> list[Row]:
    """Rows of the committed results file of that name, one for each seed; they agree in all else.

    Raises LookupError if they do not, or if there are none.
    """
    found = committed(name).find(**fields)
    if len({(*row.key[:-1], row.details.get("again")) for row in found}) != 1:
        raise LookupError(f"{name}: {len(found)} rows with {fields}")
    return found


def row(name: str, **fields: Any) -> Row:
    """The one row with these fields. Raises LookupError if there is none, or more than one."""
    (found,) = committed_rows(name, **fields)
    return found


def value(name: str, **fields: Any) -> float:
    """The mean over the seeds of these rows."""
    return statistics.mean(found.value for found in committed_rows(name, **fields))


def mean(name: str, **fields: Any) -> str:
    """Mean and standard deviation over the seeds; of a single row its own error."""
    found = committed_rows(name, **fields)
    values = [row.value for row in found]
    return f"{number(statistics.mean(values))} ± {statistics.stdev(values) if found[1:] else found[0].spread:.2f}"


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"


def rival(name: str, ratio: float) -> float:
    """The best perplexity at a ratio of a method that is not MoDeGPT."""
    return min(
        row.value for row in committed(name).find(ratio=ratio) if not row.method.startswith("modegpt") and row.value
    )


def paper_compressions() -> int:
    """How many compressed models `make reproduce PROFILE=paper` makes."""
    asked = [EXPERIMENTS[name].cases(PLANS["paper"]) for name in PAPER_EXPERIMENTS.values()]
    return sum(case.ratio > 0 for cases in asked for case in cases)


def lead_of(results: Results, model: str, share: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    """`paper_fwsvd.leads` in points at so many percent of the ranks; a pair is (method, choice), "" for none.

    In brackets where both are below always saying the largest class, and so say nothing of the methods.
    """
    pair = [
        {"method": name, "variant": f"{choice}, {share}% of the ranks".lstrip(", ")} for name, choice in (one, other)
    ]
    lead, error, _ = leads(results.find(model=model), *pair)[model]
    words = f"{100 * lead:+.1f} ± {100 * error:.1f}"
    ruined = all(over_guessing(results, model=model, **which)[model] <= 0 for which in pair)
    return f"({words})" if ruined else words


@cache
def _findings() -> list[Finding]:
    found, bad = read_results(COMMITTED)
    if bad:
        raise LookupError(bad[0])
    return findings(found)


def claim(start: str) -> Finding:
    """What the committed results say of the claim that begins like this."""
    (found,) = [finding for finding in _findings() if finding.claim.startswith(start)]
    return found


def seconds(results: Results) -> float:
    """GPU or CPU seconds that a file records of its own run; 0 if none. What rows share counts once."""
    shared, total = {}, 0.0
    for row in results.rows:
        if row.what in ("time", "compression"):  # several GPUs have a peak each
            gpus = row.details.get("ranks" if results.experiment == "bench.stream" else "peak_bytes")
            total += (row.value or 0.0) * (len(gpus) if isinstance(gpus, list) else 1)
        steps = row.details.get("seconds")
        for step, spent in steps.items() if isinstance(steps, dict) else ():
            if step in ("calibrate", "measure"):  # one for all ratios
                shared[row.model, row.method, row.seed, step] = spent
            else:
                total += spent
    return total + sum(shared.values())


def took(results: Results) -> str:
    """What `seconds` are in words."""
    spent = seconds(results)
    return f"{spent / 60:.1f} min" if spent >= 60 else f"{spent:.0f} s" if spent else "not recorded"


def seconds_of(device: str) -> float:
    """Those of all committed files of a kind of device, cuda or cpu."""
    return sum(seconds(results) for _, results in files() if results.device.startswith(device))


def without_seconds(device: str) -> int:
    """How many of these record none."""
    return sum(not seconds(results) for _, results in files() if results.device.startswith(device))


def files() -> list[tuple[str, Results]]:
    """(name, results) of every committed file."""
    return [(file.stem, committed(file.stem)) for file in sorted(COMMITTED.glob("*.json"))]


def pictures() -> list[str]:
    """Names of the pictures in figures."""
    return sorted(file.stem for file in COMMITTED.parent.glob("*.png"))


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None
