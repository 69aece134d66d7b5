"""Held out or not: runs of 13 words that a calibration text shares with what is evaluated on.

They are counted for every pair of built-in texts and for the questions of the zero-shot tasks. Thirteen words is the
measure of GPT-3's authors (arXiv 2005.14165, appendix C).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modegpt.console import command_line, err, out
from modegpt.errors import ModegptError
from modegpt.sources import TEXTS, load_text
from modegpt.sources.questions import QUESTION_SETS, load_questions
from modegpt.sources.texts import alpaca_template
from modegpt.study.results import Results, Row, save

WORDS = 13
CALIBRATIONS = ("wikitext2", "wikitext2:validation", "c4", "alpaca", "wiki-passages")


def ngrams(text: str, words: int = WORDS) -> Iterator[tuple[str, ...]]:
    """Runs of so many words within a line, in lower case and without punctuation."""
    for line in text.split("\n"):
        found = re.findall(r"\w+", line.lower())
        yield from zip(*(found[start:] for start in range(words)), strict=False)


@dataclass(frozen=True)
class Overlap:
    """How many runs of the evaluation text are in the calibration text too: distinct ones, and all of `of`."""

    distinct: int
    shared: int
    of: int

    @property
    def share(self) -> float:
        """Of the evaluation text's runs."""
        return self.shared / self.of if self.of else 0.0


def overlap(calibration: str, evaluation: str, words: int = WORDS) -> Overlap:
    """Count the runs of `words` words that both texts hold; Alpaca's prompt template, which is no content, left out."""
    known = set(ngrams(calibration, words)) - set(ngrams(alpaca_template(), words))
    runs = list(ngrams(evaluation, words))
    shared = [run for run in runs if run in known]
    return Overlap(len(set(shared)), len(shared), len(runs))


def questions_text(name: str) -> str:
    """All that a question set shows a model, a line for each string."""
    return "\n".join(text for row in load_questions(name) for text in _strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.replace("\n", " ")
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def report(folder: Path) -> None:
    """Count shared runs of 13 words between every calibration text and every evaluation text."""
    rows, evaluations = [], {}
    for name in (*TEXTS, *QUESTION_SETS):
        try:
            evaluations[name] = load_text(name, "evaluation") if name in TEXTS else questions_text(name)
        except ModegptError as error:
            err.print(f"left out, {name}: {error}", style="yellow")
    for calibration in CALIBRATIONS:
        try:
            text = load_text(calibration, "calibration")
        except ModegptError as error:
            err.print(f"left out, {calibration}: {error}", style="yellow")
            continue
        for name, evaluation in evaluations.items():
            found = overlap(text, evaluation)
            details = {"distinct": found.distinct, "shared": found.shared, "of": found.of}
            rows.append(
                Row(
                    what=f"shared runs of {WORDS} words",
                    value=found.share,
                    unit="share",
                    model="",
                    method="",
                    variant=f"calibrated on {calibration}",
                    data=name,
                    details=details,
                )
            )
            out.print(f"{calibration} -> {name}: {found.shared} of {found.of} ({found.distinct} distinct)")
    title = "is evaluation text held out"
    results = Results.now("overlap", title, {"words": WORDS}, rows, "cpu", command_line())
    out.print(f"written: {save(results, folder / 'results' / 'texts.overlap.json')}")
