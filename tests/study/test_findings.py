import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from modegpt.study.bench.literal import STEPS
from modegpt.study.findings import findings, gaps, in_one_line, one_verdict
from modegpt.study.report import read_results
from modegpt.study.results import MEAN, UNITS, Results, Row
from modegpt.study.verdicts import FAILED, JUDGES, REPRODUCED, SHAPE, UNTESTED, Missing, decided, kept_error, log_ratio

ROOT = Path(__file__).resolve().parents[2]


def row(value, what="perplexity", **changes) -> Row:
    fields = {"what": what, "unit": UNITS[what], "model": "smollm2-135m", "method": "modegpt"}
    return Row(value=value, **fields | changes)


def judged(claim: str, experiment: str, rows: list[Row], settings=None):
    """The finding whose claim begins like this, from one results file."""
    file = Results.now(experiment, "any words", settings or {}, rows, "cpu", "")
    (found,) = [f for f in findings([file]) if f.claim.startswith(claim)]
    return found


def test_without_results_nothing_is_testable_and_every_claim_is_there():
    found = findings([])
    assert [(f.claim, f.paper, f.source) for f in found] == list(JUDGES)
    assert {f.verdict for f in found} == {UNTESTED} and all(f.why for f in found)


def accuracies(kept: float, model: str, error: float = 0.002) -> list[Row]:
    same = {"what": "accuracy", "unit": "share", "data": MEAN, "model": model, "spread": error}
    return [row(0.6, ratio=0.0, **same | {"method": "dense"}), row(0.6 * kept, ratio=0.3, variant="calibrated", **same)]


RETENTION = ("Zero-shot", "The same, of what lies above")
KEPT = [
    (0.88, "Llama-2-7b-hf", REPRODUCED, REPRODUCED),
    (0.88, "smollm2-135m", SHAPE, SHAPE),  # never more on another model
    (0.88, "llama-160m", SHAPE, SHAPE),
    (0.97, "Llama-2-7b-hf", SHAPE, SHAPE),
    (0.84, "smollm2-135m", SHAPE, SHAPE),
    (0.82, "smollm2-135m", FAILED, SHAPE),
    (0.795, "smollm2-135m", FAILED, UNTESTED),  # 51 % of what lies above guessing, but 1 % is its error
    (0.76, "smollm2-135m", FAILED, FAILED),
    (0.70, "Llama-2-7b-hf", FAILED, FAILED),
]


@pytest.mark.parametrize(("kept", "model", "raw", "above"), KEPT)
def test_retention(kept, model, raw, above):
    files = "retention", accuracies(kept, model)
    found, second = (judged(claim, *files) for claim in RETENTION)
    assert (found.verdict, second.verdict) == (raw, above)
    assert f"{kept:.1%} at 30%" in found.ours and "guessing alone keeps 58%" in found.why
    assert f"{(0.6 * kept - 0.35) / 0.25:.0%} ± " in (second.ours or second.why)
    assert bool(second.lacking) is (second.verdict == UNTESTED)


@pytest.mark.parametrize("claim", RETENTION)
def test_retention_is_reproduced_by_the_case_of_the_papers_model(claim):
    """LLaMA-2 7B was read at 30 %, LLaMA-3 8B at 25 %; the other ratio of a model is no number of the paper's."""
    rows = accuracies(0.88, "Llama-2-7b-hf")
    rows.append(dataclasses.replace(rows[1], ratio=0.25, value=0.9 * 0.6))
    found = judged(claim, "retention", rows)
    assert found.verdict == REPRODUCED and len(found.numbers) == 1


@pytest.mark.parametrize(("kept", "error"), [(0.9, 0.05), (0.9, 0.018), (0.83, 0.005)])
def test_too_few_questions_are_no_test(kept, error):
    """Where the limit lies within two standard errors, another set of questions might say the opposite."""
    found = judged("Zero-shot", "retention", accuracies(kept, "smollm2-135m", error=error))
    assert found.verdict == UNTESTED and "too few questions" in found.why


def answered(dense: np.ndarray, small: np.ndarray) -> list[Row]:
    """Rows of two models that answered (tasks, questions) right or wrong, and their means."""
    rows = []
    for method, ratio, right in (("dense", 0.0, dense), ("modegpt", 0.3, small)):
        same = {"what": "accuracy", "unit": "share", "method": method, "ratio": ratio, "variant": method}
        errors = (right.var(1, ddof=1) / right.shape[1]) ** 0.5
        for task, (each, error) in enumerate(zip(right, errors, strict=True)):
            details = {"right": "".join(map(str, each))}
            rows.append(row(each.mean(), data=str(task), spread=error, details=details, **same))
        rows.append(row(right.mean(), data=MEAN, spread=sum(errors**2) ** 0.5 / len(right), **same))
    return rows


def test_questions_are_paired_and_the_error_is_that_of_drawing_them_again():
    """Against the spread of the share kept over sets of questions drawn with replacement."""
    draw = np.random.default_rng(0)
    hard = draw.random((5, 800))
    dense, small = (((hard + 0.3 * draw.random(hard.shape)) < limit).astype(int) for limit in (0.7, 0.6))
    shares = []
    for _ in range(2000):
        again = draw.integers(0, 800, hard.shape)
        right = [np.take_along_axis(each, again, 1).mean() for each in (dense, small)]
        shares.append(right[1] / right[0])
    rows = answered(dense, small)
    tasks, kept = [row for row in rows if row.data != MEAN], small.mean() / dense.mean()
    paired = kept_error(tasks[:5], tasks[5:], kept) / dense.mean()
    assert paired == pytest.approx(np.std(shares), rel=0.1)
    bare = [dataclasses.replace(task, details={}) for task in tasks]
    assert kept_error(bare[:5], bare[5:], kept) / dense.mean() > 1.5 * paired


@pytest.mark.parametrize(("lost", "verdict"), [(49, UNTESTED), (41, SHAPE), (60, FAILED)])
def test_paired_questions_decide_what_others_do_not(lost, verdict):
    """Of 300 right answers in each task; the limit is that 50.7 are lost."""
    dense = np.tile([1] * 300 + [0] * 100, (5, 1))
    small = dense.copy()
    small[:, :lost] = 0
    rows = answered(dense, small)
    assert judged("Zero-shot", "retention", rows).verdict == verdict
    bare = [dataclasses.replace(row, details={}) for row in rows]
    assert judged("Zero-shot", "retention", bare).verdict == UNTESTED


@pytest.mark.parametrize(("better", "verdict"), [(8.0, SHAPE), (9.9, FAILED), (11.0, FAILED)])
def test_allocation_must_win_by_more_than_the_seeds_differ(better, verdict):
    rows = [row(10.0 + seed, ratio=0.3, variant="uniform allocation", seed=seed) for seed in (0, 1)]
    rows += [row(better + seed, ratio=0.3, variant="global allocation", seed=seed) for seed in (0, 1)]
    assert judged("Global", "allocation", rows).verdict == verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.04, REPRODUCED), (1.15, SHAPE), (1.5, FAILED)])
def test_perplexities_of_the_papers_model(factor, verdict):
    paper = {0.0: 5.12, 0.3: 7.51}
    fields = {"model": "Llama-2-7b-hf", "data": "wikitext2", "details": {"seq_len": 4096}}
    rows = [row(paper[ratio] * factor, ratio=ratio, variant="windows of 4096", **fields) for ratio in paper]
    rows.append(row(99.0, ratio=0.3, variant="windows of 2048", **fields | {"details": {"seq_len": 2048}}))
    assert judged("LLaMA-2 7B", "windows", rows).verdict == verdict
    assert judged("LLaMA-2 7B", "windows", rows[:1]).verdict == UNTESTED  # dense says nothing of a method


def test_a_case_that_failed_says_why():
    failed = row(None, what="time", unit="s", variant="calibrate", details={"error": "no room"})
    assert judged("Where the time", "time", [failed]).why == "no room"


def test_the_committed_results_are_judged():
    files, bad = read_results(ROOT / "figures/results")
    assert bad == []
    verdicts = {f.claim: f.verdict for f in findings(files)}
    assert verdicts["Global against uniform allocation at 30 %: perplexity"] == SHAPE
    assert verdicts["Better than other methods at 30 %"] == verdicts["Better than other methods at 50 %"] == SHAPE
    assert verdicts["FWSVD against plain SVD at 20 %, not fine-tuned: perplexity"] == SHAPE
    assert verdicts["Where the time goes"] == FAILED
    assert verdicts["LLaMA-2 7B, WikiText-2 perplexity at 0 to 50 %"] == UNTESTED
    assert verdicts["Zero-shot accuracy kept at 25 to 30 %"] == SHAPE
    assert verdicts["The same, of what lies above guessing"] == UNTESTED  # 53 % ± 5 %
    assert REPRODUCED not in verdicts.values()


def test_a_loss_against_a_rival_on_smollm2_is_not_hidden():
    rows = [row(50.0, ratio=0.3, data="t"), row(40.0, ratio=0.3, data="t", method="svd-llm")]
    experiment = "compare"
    assert judged("Better than other methods at 30 %", experiment, rows).verdict == FAILED
    rows = [dataclasses.replace(r, value=90 - r.value) for r in rows]
    assert judged("Better than other methods at 30 %", experiment, rows).verdict == SHAPE
    rows = [dataclasses.replace(r, value=40 if r.method == "modegpt" else 41) for r in rows]
    assert judged("Better than other methods at 30 %", experiment, rows).verdict == FAILED  # draws differ by as much


def test_a_loss_on_opt_mini_is_named_and_counts_alone_only():
    experiment = "compare"
    lost = [row(50.0, ratio=0.3, model="opt-mini"), row(40.0, ratio=0.3, model="opt-mini", method="svd-llm")]
    assert judged("Better than other methods at 30 %", experiment, lost).verdict == FAILED
    won = [row(40.0, ratio=0.3), row(50.0, ratio=0.3, method="svd-llm")]
    found = judged("Better than other methods at 30 %", experiment, lost + won)
    assert found.verdict == SHAPE and "not ahead on opt-mini" in found.why


@pytest.mark.parametrize(("times", "verdict"), [(1.46, SHAPE), (1.05, FAILED)])
def test_throughput_is_never_the_papers_case_and_slow_cases_are_counted(times, verdict):
    same = {"what": "prefill", "unit": "tokens/s", "ratio": 0.5, "model": "llama-2-7b, 32 layers"}
    rows = [row(1.0, **same, variant=str(i), details={"speed_up": t}) for i, t in enumerate((times, 1.01, 0.6))]
    rows.append(row(1.0, **same | {"model": "llama-2-7b, 8 layers"}, details={"speed_up": 0.3}))
    found = judged("Throughput", "bench.throughput", rows)
    assert found.verdict == verdict and f"{times - 1:.0%} more" in found.ours
    assert "best of 3 cases: their median is 1% more, 1 are slower" in found.why
    special = [row(1.0, **same, variant=name, details={"speed_up": 3.0, name: "x"}) for name in ("like", "fused")]
    plain = judged("Throughput", "bench.throughput", rows + special)
    assert (plain.ours, plain.why) == (found.ours, found.why)
    file = Results.now("bench.throughput", "", {}, rows, "cpu", "")
    both = findings([file, dataclasses.replace(file, device="cuda: another card")])
    assert found.why in [finding.why for finding in both]  # the cases of one machine


def literal(value_output: float) -> list[Row]:
    """What `modegpt bench literal` writes of a layer: a second for every other step."""
    rows = [row(9.0, what="speed-up", model="llama-2-7b"), row(1.0, what="kept dims in common", model="llama-2-7b")]
    rows.append(row(1.0, what="kept channels in common", model="llama-2-7b"))
    rows.append(row(0.0, what="value-output products differ", model="llama-2-7b"))
    for method in ("modegpt", "literal"):
        rows.append(row(100.0, what="all layers", model="llama-2-7b", method=method))
        for step in STEPS:
            value = value_output if step == "value_output" else 1.0
            rows.append(row(value, what=f"one layer: {step}", model="llama-2-7b", method=method))
    return rows


@pytest.mark.parametrize(("step", "share", "verdict"), [(6.0, "60%", SHAPE), (1.0, "20%", FAILED)])
def test_where_the_time_goes_is_asked_of_the_papers_text_too(step, share, verdict):
    ours = [row(1.0, what="time", unit="s", variant=name) for name in ("calibrate", "value-output: SVD", "MLP", "new")]
    files = [
        Results.now("time", "", {}, ours, "cpu", ""),
        Results.now("bench.literal", "", {}, literal(step), "cpu", ""),
    ]
    (found,) = [f for f in findings(files) if f.claim.startswith("Where")]
    assert found.verdict == verdict and found.ours.startswith("25%") and f"{share} (llama-2-7b shape)" in found.ours


def test_the_time_of_the_papers_text_stands_beside_a_speed_up():
    rows = [row(100.0, what="compression", unit="s", model="llama-2-7b", variant="2 walks")]
    found = judged("Time to compress", "bench.compress", rows)
    assert found.verdict == SHAPE and "149 times" in found.why and "its text" not in found.why
    assert (
        "its text, step by step: 100 s (llama-2-7b)"
        in judged("Time to compress", "bench.compress", rows + literal(1.0)).why
    )


def test_nothing_is_averaged_over_models_or_machines():
    kinds = [(kind, seed) for kind in ("global", "uniform") for seed in (0, 1)]
    rows = [row(10.0, ratio=0.3, variant=f"{kind} allocation", seed=seed) for kind, seed in kinds]
    other = [dataclasses.replace(r, model="opt-mini", value=90.0) for r in rows]
    files = [Results.now("allocation", "", {}, found, "cpu", "") for found in (other, rows)]
    for order in (files, files[::-1]):
        (found,) = [f for f in findings(order) if f.claim.startswith("Global")]
        assert found.ours.startswith("10.00 against 10.00")
        assert found.files == (files[1],) * len(found.files)


def test_one_draw_is_no_test_of_a_difference():
    rows = [row(10.0, ratio=0.3, variant=f"{kind} allocation", seed=0) for kind in ("global", "uniform")]
    found = judged("Global", "allocation", rows)
    assert found.verdict == UNTESTED and "one draw" in found.why


def test_the_numbers_of_a_verdict_are_those_it_rests_on():
    found = findings(read_results(ROOT / "figures" / "results")[0])
    numbers = [(finding, number) for finding in found for number in finding.numbers]
    assert len(numbers) >= 6 and not [f for f in found if f.verdict == UNTESTED and f.numbers]
    for finding, number in numbers:
        assert finding.verdict and number.low <= number.paper <= number.high
        assert finding.verdict != REPRODUCED or number.low <= number.ours <= number.high
    shares = [(60.78 / 69.00, 0.88), ((60.78 - 35) / (69.00 - 35), (0.6 * 0.88 - 0.35) / 0.25)]
    for claim, (paper, ours) in zip(RETENTION, shares, strict=True):
        (kept,) = judged(claim, "retention", accuracies(0.88, "smollm2-135m")).numbers
        assert (kept.paper, kept.ours) == pytest.approx((paper, ours))


def test_gaps_are_what_the_files_say_of_themselves():
    failed = [row(None, variant=f"{n} samples", details={"error": "the run was cut"}) for n in (128, 256)]
    noted = row(3.0, details={"note": "from the screen"})
    some = row(9.0, what="compression", unit="s", model="70b", details={"layers": 4, "of_layers": 80})
    whole = row(9.0, what="compression", unit="s", model="7b", details={"layers": 32, "of_layers": 32})
    refused = row(None, what="attention", unit="s", details={"error": "no kernel"})  # an answer, no gap
    file = Results.now(
        "any", "size", {"left_out": ["sweep", "linear"]}, [*failed, noted, some, whole, refused], "cpu", ""
    )
    found = gaps([file])
    untested = [finding for finding in findings([file]) if finding.verdict == UNTESTED]
    assert found[:-4] == [(finding.claim, finding.why) for finding in untested]
    assert found[-4:] == [
        ("size: smollm2-135m, 128 samples and 1 more", "the run was cut"),
        ("size: sweep, linear", "no time was left in that run"),
        ("size: 1 row", "from the screen"),
        ("size: 70b", "4 of 80 layers were run"),
    ]
    streamed = row(9.0, what="compression", unit="s", model="70b", variant="streamed, 1 rank")
    there = Results.now("bench.stream", "", {}, [streamed], "cpu", "")
    assert ("size: 70b", "4 of 80 layers were run") not in gaps([file, there])


def test_several_gpus_are_not_set_beside_the_papers_one():
    rows = [row(7.0, what="compression", unit="s", model="llama-2-7b", variant="4 ranks")]
    assert judged("Time to compress", "bench.scaling", rows).verdict == UNTESTED


def with_losses(value: float, *losses: float, **changes) -> Row:
    return row(value, spread=2.0, details={"losses": list(losses)}, **changes)


def test_the_same_windows_are_compared_one_by_one():
    """Windows differ by far more than the methods do on each of them."""
    one, other = with_losses(20.0, 2.0, 3.0, 4.0), with_losses(21.0, 2.04, 3.06, 4.05)
    mean, error = log_ratio(one, other)
    assert mean == pytest.approx(-0.0488, abs=1e-4) and error == pytest.approx(0.01 / 3**0.5)
    assert log_ratio(row(20.0, spread=2.0), row(21.0, spread=2.0))[1] > 10 * error
    decided(mean, error, "windows")
    with pytest.raises(Missing, match="windows"):
        decided(mean, 0.03, "windows")


@pytest.mark.parametrize(("noise", "verdict"), [(0.01, SHAPE), (0.2, UNTESTED)])
def test_windows_decide_or_do_not(noise, verdict):
    """A lead of 10 % counts if it is there on every window, and is no test if it is there on some."""
    near = [math.log(0.8) + noise * part for part in (-1, 1, -1, 1)]
    rows = [with_losses(80.0, *near, ratio=0.3), with_losses(100.0, 0.0, 0.0, 0.0, 0.0, ratio=0.3, method="svd-llm")]
    found = judged("Better than other methods at 30 %", "compare", rows)
    assert found.verdict == verdict
    pair = (("global", near), ("uniform", [0.0] * 4))
    draws = [
        with_losses(80.0 if kind == "global" else 100.0, *losses, ratio=0.3, variant=f"{kind} allocation", seed=seed)
        for kind, losses in pair
        for seed in (0, 1)
    ]
    assert judged("Global", "allocation", draws).verdict == verdict


def test_a_noisy_machine_decides_nothing_of_throughput():
    same = {"what": "prefill", "unit": "tokens/s", "ratio": 0.5, "model": "llama-2-7b, 32 layers"}
    for spread, other, verdict in ((1.0, 1.0, SHAPE), (20.0, 1.0, UNTESTED), (1.0, 20.0, UNTESTED)):
        rows = [row(100.0, **same, spread=spread, details={"speed_up": 1.3, "batch": 1})]
        dense = same | {"ratio": 0.0, "method": "dense"}
        rows.append(row(77.0, **dense, spread=other, details={"batch": 1}))
        rows.append(row(77.0, **dense, spread=50.0, variant="another case", details={"batch": 4}))
        assert judged("Throughput", "bench.throughput", rows).verdict == verdict


LEADS = [((0.05, 0.06, 0.07), SHAPE), ((-0.02, 0.0, 0.02), FAILED), ((-0.2, 0.1, 0.3), UNTESTED), ((0.1,), UNTESTED)]


def on_tasks(leads, one, other):
    """Rows of two models on one task, a seed for each lead; the second model leads by half a point more."""
    same = {"what": "accuracy", "unit": "share", "data": "t", "details": {"weight_error": 0.5}}
    rows = []
    for model, more in (("a", 0.0), ("b", 0.005)):
        for seed, lead in enumerate(leads):
            rows.append(row(0.5, **same | {"model": model, "seed": seed} | other))
            rows.append(row(0.5 + lead + more, **same | {"model": model, "seed": seed} | one))
    return rows


MAJORITY = {model: {"t": {"majority": 0.1}} for model in "ab"}
RANKS = [{"method": method, "variant": "33% of the ranks"} for method in ("fwsvd", "svd")]
AGAIN = [about | {"variant": "33% of the ranks, fine-tuned again"} for about in RANKS]


@pytest.mark.parametrize(("leads", "verdict"), LEADS)
def test_fwsvd_must_lead_by_more_than_the_seeds_differ(leads, verdict):
    found = judged("FWSVD against plain SVD at 33 %", "fwsvd.ranks", on_tasks(leads, *RANKS), MAJORITY)
    assert (found.verdict, found.source) == (verdict, "FWSVD")
    assert verdict == UNTESTED or found.ours.startswith("a: ")


def test_a_model_that_both_methods_ruin_is_left_out():
    rows = on_tasks((0.05, 0.06), *RANKS)
    rows = [dataclasses.replace(x, value=0.05) if x.model == "a" else x for x in rows]
    found = judged("FWSVD against plain SVD at 33 %", "fwsvd.ranks", rows, MAJORITY)
    assert found.verdict == SHAPE and found.ours.startswith("b: ") and "bring a below" in found.why
    rows = [dataclasses.replace(x, value=0.05) for x in rows]
    found = judged("FWSVD against plain SVD at 33 %", "fwsvd.ranks", rows, MAJORITY)
    assert found.verdict == UNTESTED and "every model" in found.why


@pytest.mark.parametrize(("leads", "verdict"), [((0.05, 0.06), SHAPE), ((-0.2, 0.3), FAILED), ((0.1,), UNTESTED)])
def test_fwsvd_must_lead_after_the_second_fine_tuning_too(leads, verdict):
    assert judged("Fine-tuned again, FWSVD", "fwsvd.ranks", on_tasks(leads, *AGAIN)).verdict == verdict


@pytest.mark.parametrize(("nearer", "verdict"), [(False, SHAPE), (True, FAILED)])
def test_fwsvd_must_be_better_and_further_from_the_weights(nearer, verdict):
    errors = (0.5, 0.6) if nearer else (0.6, 0.5)
    pair = [about | {"details": {"weight_error": error}} for about, error in zip(RANKS, errors, strict=True)]
    rows = on_tasks((0.05, 0.06), *pair)
    assert judged("FWSVD's weights are further", "fwsvd.ranks", rows, MAJORITY).verdict == verdict


@pytest.mark.parametrize(("leads", "verdict"), [((-0.009, -0.008), SHAPE), ((-0.03, -0.02), FAILED)])
def test_a_compact_model_may_lose_a_point(leads, verdict):
    one = {"method": "fwsvd", "variant": "30% smaller, fine-tuned again"}
    other = {"method": "dense", "variant": "compact by MoDeGPT, fine-tuned again"}
    assert judged("An already compact model", "fwsvd.compact", on_tasks(leads, one, other)).verdict == verdict


@pytest.mark.parametrize(("leads", "verdict"), [((0.05, 0.06), SHAPE), ((-0.05, -0.06), FAILED)])
def test_a_compressed_model_must_beat_a_small_one(leads, verdict):
    small = {"method": "fewer layers", "variant": "as large as 33% of the ranks, fine-tuned again"}
    rows = on_tasks(leads, AGAIN[0], small)
    parts = {"fwsvd.ranks": [x for x in rows if x.method == "fwsvd"]}
    parts["fwsvd.direct"] = [x for x in rows if x.method == "fewer layers"]
    files = [Results.now(part, "any words", {}, mine, "cpu", "") for part, mine in parts.items()]
    (found,) = [x for x in findings(files) if x.claim.startswith("A task model compressed by FWSVD")]
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("FWSVD at 33 % of the ranks: gradients", {"method": "fwsvd", "variant": "weights of the inputs alone, "}),
        ("FWSVD at 33 % of the ranks against whit", {"method": "svd-llm", "variant": "whitened by the inputs, "}),
    ],
)
def test_fwsvd_is_compared_with_what_needs_no_gradient(question, other):
    rows = on_tasks((0.05, 0.06), RANKS[0], other | {"variant": other["variant"] + "33% of the ranks"})
    found = judged(question, "fwsvd.vary", rows, MAJORITY)
    assert (found.verdict, found.source) == ("", "") and found.ours.startswith("a: +5.5 ")
    rows = [dataclasses.replace(x, value=0.05) if x.model == "a" else x for x in rows]
    found = judged(question, "fwsvd.vary", rows, MAJORITY)
    assert found.ours.startswith("b: ") and "bring a below" in found.ours


@pytest.mark.parametrize(("weighted", "verdict"), [(100.0, SHAPE), (990.0, FAILED), (2000.0, FAILED)])
def test_fwsvd_is_lower_than_svd_on_every_model(weighted, verdict):
    rows = [row(1000.0, ratio=0.2, method="svd"), row(weighted, ratio=0.2, method="fwsvd")]
    rows += [row(9e6, ratio=0.2, method="svd", model="b"), row(9e3, ratio=0.2, method="fwsvd", model="b")]
    assert judged("FWSVD against plain SVD at 20 %", "compare", rows).verdict == verdict


def test_a_claim_has_one_verdict_from_the_run_where_it_can():
    kit, _ = read_results(ROOT / "figures/results")
    rows = [row(50.0, ratio=0.3), row(40.0, ratio=0.3, method="svd-llm")]
    run = Results.now("compare", "", {}, rows, "cpu", "")
    found = {f.claim: f for f in one_verdict([run], kit)}
    own = found["Better than other methods at 30 %"]
    assert own.verdict == FAILED and own.mine and run.date in own.where
    other = found["Zero-shot accuracy kept at 25 to 30 %"]
    assert other.verdict == SHAPE and not other.mine and other.where == "NVIDIA H100 80GB HBM3, 2026-11-24"
    assert found["LLaMA-2 7B, WikiText-2 perplexity at 0 to 50 %"].verdict == UNTESTED
    assert found["The same, of what lies above guessing"].lacking == "more questions"  # a run without tasks says less
    assert len(found) == len(findings(kit)) and found["Memory to compress, 7B shape"].ours


def test_the_sum_counts_each_claim_once():
    kit = findings(read_results(ROOT / "figures/results")[0])
    counts = "9 reproduced in shape, 4 not, 2 need the paper's weights, 1 needs more questions"
    assert in_one_line(kit) == f"16 claims: {counts}"
    assert in_one_line(findings([])[:3]) == f"3 claims: 2 need the paper's weights, 1 {UNTESTED}"
    assert in_one_line(findings([])) == f"16 claims: 2 need the paper's weights, 14 {UNTESTED}"  # questions are none
    failed = [finding for finding in kit if finding.verdict == FAILED]
    assert in_one_line(failed[:1]) == "1 claims: 1 not reproduced"
