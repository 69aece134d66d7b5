"""The held-out rule: what a model is measured on, its calibration has not seen."""

import os
from pathlib import Path

import pytest

from modegpt.errors import ModegptError
from modegpt.sources import TEXTS, load_text
from modegpt.sources.questions import QUESTION_SETS
from modegpt.sources.texts import alpaca_template
from modegpt.study import overlap as kit
from modegpt.study.overlap import CALIBRATIONS, Overlap, ngrams, overlap, questions_text
from modegpt.study.results import load

COMMITTED = Path(__file__).resolve().parents[2] / "figures/results/texts.overlap.json"


def test_runs_of_words_stay_within_a_line_and_ignore_case_and_punctuation():
    assert list(ngrams("One two, THREE.\nfour five six", 2)) == [
        ("one", "two"),
        ("two", "three"),
        ("four", "five"),
        ("five", "six"),
    ]


def test_a_shared_run_is_found_as_often_as_it_is_there():
    run = " ".join(f"word{i}" for i in range(13))
    assert overlap(f"before {run} after", f"{run}\nother {run}\n{run[:-1]}x") == Overlap(1, 2, 4)
    assert overlap(run[:-1], run) == Overlap(0, 0, 1)


def test_the_template_of_alpaca_is_no_content():
    assert overlap(alpaca_template(), alpaca_template()).shared == 0
    assert overlap(alpaca_template(), alpaca_template()).of > 10


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_no_built_in_text_shares_thirteen_words_with_what_it_is_evaluated_on(calibration, text):
    """Live where the texts are at hand; figures/results/texts.overlap.json holds the counts of all."""
    if {calibration, text} != {"wiki-passages"} and not os.environ.get("MODEGPT_DATA_DIR"):
        pytest.skip("MODEGPT_DATA_DIR is not set")
    found = overlap(load_text(calibration, "calibration"), load_text(text, "evaluation"))
    # the Second Amendment stands in BoolQ and in Alpaca
    assert found.distinct == (9 if (calibration, text) == ("wiki-passages", "alpaca") else 0)
    assert found.of > 5000


def test_the_reported_counts_cover_every_pair_and_only_boolq_is_not_held_out():
    results = load(COMMITTED)
    pairs = {(row.variant.removeprefix("calibrated on "), row.data): row for row in results.rows}
    assert set(pairs) == {(c, name) for c in CALIBRATIONS for name in (*TEXTS, *QUESTION_SETS)}
    shared = {pair: row.details["distinct"] for pair, row in pairs.items() if row.details["shared"]}
    assert shared.pop(("wiki-passages", "boolq")) > 100_000  # its passages are BoolQ's: evaluate warns
    assert shared == {("wiki-passages", "alpaca"): 9}


@pytest.mark.parametrize("name", ["arc_easy", "winogrande"])
def test_questions_are_counted_live_too(name):
    committed = {(row.variant, row.data): row for row in load(COMMITTED).rows}
    found = overlap(load_text("wiki-passages", "calibration"), questions_text(name))
    row = committed["calibrated on wiki-passages", name]
    assert (found.shared, found.of) == (row.details["shared"], row.details["of"]) == (0, found.of)


def test_what_is_not_at_hand_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    def only_two(name, part):
        if name not in ("alpaca", "c4"):
            raise ModegptError("no hub")
        return f"{part} of {name}"

    monkeypatch.setattr(kit, "load_text", only_two)
    monkeypatch.setattr(kit, "QUESTION_SETS", {})
    kit.report(tmp_path)
    assert len(load(tmp_path / "results/texts.overlap.json").rows) == 4
    assert "left out, wikitext2: no hub" in capsys.readouterr().err
