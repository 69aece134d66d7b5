"""What results say of the claims of the two papers: the paper's number, ours, a tolerance, a verdict and why."""

from collections import Counter
from collections.abc import Iterable
from textwrap import shorten

from modegpt.study import paper_modegpt  # noqa: F401, the rules enter themselves into JUDGES, in this order

from modegpt.study import paper_fwsvd  # noqa: F401 # isort: skip
from modegpt.study.figures.speed import whole_compressions
from modegpt.study.results import Results
from modegpt.study.verdicts import FAILED, JUDGES, REPRODUCED, SHAPE, UNTESTED, Evidence, Finding, Missing


def findings(files: Iterable[Results], mine: bool = False) -> list[Finding]:
    """Every claim judged by these files; what they do not hold is not testable here."""
    files, found = list(files), []
    for (claim, paper, source), judge in JUDGES.items():
        evidence = Evidence(files)
        try:
            said = judge(evidence)
            found.append(Finding(claim, paper, **said, source=source, files=tuple(evidence.used), mine=mine))
        except Missing as reason:
            known = {"why": str(reason), "lacking": reason.lacking, "source": source, "mine": mine}
            found.append(Finding(claim, paper, "", UNTESTED, **known))
    return found


def one_verdict(run: Iterable[Results], kit: Iterable[Results]) -> list[Finding]:
    """Every claim judged once: by a run where it can, else by the results that come with the kit.

    Where neither can, the one that knows what is lacking speaks.
    """
    pairs = zip(findings(run, mine=True), findings(kit), strict=True)
    return [theirs if _says_more(theirs, mine) else mine for mine, theirs in pairs]


def _says_more(theirs: Finding, mine: Finding) -> bool:
    return mine.verdict == UNTESTED and (theirs.verdict != UNTESTED or bool(theirs.lacking and not mine.lacking))


def in_one_line(found: Iterable[Finding]) -> str:
    """How many claims came out how, such as "3 claims: 1 reproduced in shape, 1 not, 1 needs the paper's weights"."""
    found = [finding for finding in found if finding.source]
    verdicts = Counter(finding.verdict for finding in found)
    parts = [f"{verdicts[name]} {name}" for name in (REPRODUCED, SHAPE) if verdicts[name]]
    if verdicts[FAILED]:
        parts.append(f"{verdicts[FAILED]} {'not' if parts else FAILED}")
    for lacking, count in Counter(finding.lacking for finding in found if finding.verdict == UNTESTED).items():
        need = f"need{'s' * (count == 1)} {lacking}"
        parts.append(f"{count} {need if lacking else UNTESTED}")
    return f"{len(found)} claims: {', '.join(parts)}"


def gaps(files: Iterable[Results]) -> list[tuple[str, str]]:
    """What these files do not hold, and why: claims without a test, rows without a value, steps left out, notes."""
    files = list(files)
    streamed = {row.model for file in files if file.experiment == "bench.stream" for row in whole_compressions(file)}
    found = [(finding.claim, finding.why) for finding in findings(files) if finding.verdict == UNTESTED]
    for file in files:
        # a kernel that refuses a shape is an answer
        lacking = [row for row in file.rows if row.error and row.what != "attention"]
        for error in dict.fromkeys(row.error for row in lacking):
            rows = [row for row in lacking if row.error == error]
            part = rows[0].variant or rows[0].what
            first = f"{file.title}: {rows[0].model}" + (f", {part}" if part != "step" else "")
            found.append((f"{first} and {len(rows) - 1} more" if rows[1:] else first, shorten(error, 160)))
        if left_out := file.settings.get("left_out"):
            found.append((f"{file.title}: {', '.join(left_out)}", "no time was left in that run"))
        notes = [row.details["note"] for row in file.rows if "note" in row.details]
        for note in dict.fromkeys(notes):
            count = notes.count(note)
            found.append((f"{file.title}: {count} row{'s' * (count > 1)}", note))
        for row in file.find(what="compression"):
            layers, whole = (row.details.get(name, 0) for name in ("layers", "of_layers"))
            if layers < whole and row.model not in streamed:
                found.append((f"{file.title}: {row.model}", f"{layers} of {whole} layers were run"))
    return found
