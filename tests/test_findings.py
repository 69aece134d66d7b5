import dataclasses
from pathlib import Path

import pytest

from modegpt.figures.claims import MEAN
from modegpt.findings import FAILED, JUDGES, REPRODUCED, SHAPE, UNTESTED, findings, gaps
from modegpt.results import Results, Row
from modegpt.summary import read_results

ROOT = Path(__file__).resolve().parents[1]


def row(value, **changes) -> Row:
    return Row(
        **{"what": "perplexity", "unit": "", "value": value, "model": "smollm2-135m", "method": "modegpt"} | changes
    )


def judged(claim: str, title: str, rows: list[Row]):
    """The finding whose claim begins like this, from one results file."""
    (found,) = [f for f in findings([Results.now(title, {}, rows, "cpu", "")]) if f.claim.startswith(claim)]
    return found


def test_without_results_nothing_is_testable_and_every_claim_is_there():
    found = findings([])
    assert [f.claim for f in found] == [claim for claim, _, _ in JUDGES]
    assert {f.verdict for f in found} == {UNTESTED} and all(f.why for f in found)


def accuracies(kept: float, model: str, error: float = 0.005) -> list[Row]:
    same = {"what": "accuracy", "unit": "share", "data": MEAN, "model": model, "spread": error}
    return [row(0.6, ratio=0.0, **same | {"method": "dense"}), row(0.6 * kept, ratio=0.3, variant="calibrated", **same)]


@pytest.mark.parametrize(
    ("kept", "model", "verdict"),
    [
        (0.88, "Llama-2-7b-hf", REPRODUCED),
        (0.88, "smollm2-135m", SHAPE),  # never more on another model
        (0.97, "Llama-2-7b-hf", SHAPE),
        (0.70, "Llama-2-7b-hf", FAILED),
    ],
)
def test_retention(kept, model, verdict):
    found = judged("Zero-shot", "how much of the zero-shot accuracy", accuracies(kept, model))
    assert found.verdict == verdict and f"{kept:.1%} at 30%" in found.ours
    assert f"{(0.6 * kept - 0.35) / 0.25:.0%} is kept" in found.why


def test_too_few_questions_are_no_test():
    found = judged("Zero-shot", "how much of the zero-shot accuracy", accuracies(0.9, "smollm2-135m", error=0.05))
    assert found.verdict == UNTESTED and "too few questions" in found.why


@pytest.mark.parametrize(("better", "verdict"), [(8.0, SHAPE), (9.9, FAILED), (11.0, FAILED)])
def test_allocation_must_win_by_more_than_the_seeds_differ(better, verdict):
    rows = [row(10.0 + seed, ratio=0.3, variant="uniform allocation", seed=seed) for seed in (0, 1)]
    rows += [row(better + seed, ratio=0.3, variant="global allocation", seed=seed) for seed in (0, 1)]
    assert judged("Global", "global against uniform allocation", rows).verdict == verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.04, REPRODUCED), (1.15, SHAPE), (1.5, FAILED)])
def test_perplexities_of_the_papers_model(factor, verdict):
    paper = {0.0: 5.12, 0.3: 7.51}
    fields = {"model": "Llama-2-7b-hf", "data": "wikitext2", "details": {"seq_len": 4096}}
    rows = [row(paper[ratio] * factor, ratio=ratio, variant="windows of 4096", **fields) for ratio in paper]
    rows.append(row(99.0, ratio=0.3, variant="windows of 2048", **fields | {"details": {"seq_len": 2048}}))
    assert judged("LLaMA-2 7B", "perplexity depends on", rows).verdict == verdict


def test_a_case_that_failed_says_why():
    failed = row(None, what="time", unit="s", variant="calibrate", details={"error": "no room"})
    assert judged("Where the time", "seconds of each step", [failed]).why == "no room"


def test_the_committed_results_are_judged():
    files, bad = read_results(ROOT / "figures/results")
    assert bad == []
    verdicts = {f.claim: f.verdict for f in findings(files)}
    assert verdicts["Global against uniform allocation at 30 %: perplexity"] == SHAPE
    assert verdicts["Better than other methods at 30 %"] == SHAPE
    assert verdicts["Where the time goes"] == FAILED
    assert verdicts["LLaMA-2 7B, WikiText-2 perplexity at 0 to 50 %"] == UNTESTED
    assert REPRODUCED not in {verdict for claim, verdict in verdicts.items() if claim != "Throughput"}


def test_a_loss_against_a_rival_on_smollm2_is_not_hidden():
    rows = [row(50.0, ratio=0.3, data="t"), row(40.0, ratio=0.3, data="t", method="svd-llm")]
    title = "every method on the same tokens"
    assert judged("Better than", title, rows).verdict == FAILED
    rows = [dataclasses.replace(r, value=90 - r.value) for r in rows]
    assert judged("Better than", title, rows).verdict == SHAPE


def test_nothing_is_averaged_over_models_or_machines():
    rows = [row(10.0, ratio=0.3, variant=f"{kind} allocation", seed=0) for kind in ("global", "uniform")]
    other = [dataclasses.replace(r, model="opt-mini", value=90.0) for r in rows]
    files = [Results.now("global against uniform allocation", {}, found, "cpu", "") for found in (other, rows)]
    for order in (files, files[::-1]):
        (found,) = [f for f in findings(order) if f.claim.startswith("Global")]
        assert found.ours.startswith("10.00 against 10.00")  # the spread of a single draw is unknown
        assert found.verdict == UNTESTED and "one draw" in found.why


def test_the_numbers_of_a_verdict_are_those_it_rests_on():
    found = findings(read_results(ROOT / "figures" / "results")[0])
    numbers = [(finding, number) for finding in found for number in finding.numbers]
    assert len(numbers) >= 6 and not [f for f in found if f.verdict == UNTESTED and f.numbers]
    for finding, number in numbers:
        assert finding.verdict and number.low <= number.paper <= number.high
        assert finding.verdict != REPRODUCED or number.low <= number.ours <= number.high
    kept = judged("Zero-shot", "how much of the zero-shot accuracy", accuracies(0.88, "smollm2-135m")).numbers
    assert [(number.paper, round(number.ours, 6)) for number in kept] == [(0.88, 0.88)]


def test_gaps_are_what_the_files_say_of_themselves():
    failed = [row(None, variant=f"{n} samples", details={"error": "the run was cut"}) for n in (128, 256)]
    noted = row(3.0, details={"note": "from the screen"})
    some = row(9.0, what="compression", unit="s", model="70b", details={"layers": 4, "of_layers": 80})
    whole = row(9.0, what="compression", unit="s", model="7b", details={"layers": 32, "of_layers": 32})
    file = Results.now("size", {"left_out": ["sweep", "linear"]}, [*failed, noted, some, whole], "cpu", "")
    found = gaps([file])
    untested = [finding for finding in findings([file]) if finding.verdict == UNTESTED]
    assert found[:-4] == [(finding.claim, finding.why) for finding in untested]
    assert found[-4:] == [
        ("size: smollm2-135m, 128 samples and 1 more", "the run was cut"),
        ("size: sweep, linear", "no time was left"),
        ("size: 1 row", "from the screen"),
        ("size: 70b", "4 of 80 layers were run"),
    ]
