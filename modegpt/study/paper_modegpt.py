"""What the paper of MoDeGPT claims (arXiv 2408.09632v5), and the rule for each claim.

Its numbers were read in copies, none of them was measured here.
"""

import math
import operator
import statistics
from collections.abc import Callable
from typing import Any

from modegpt.evaluate.tasks import GUESSING
from modegpt.study.bench.readings import ONE_GPU, side_by_side, steps_of
from modegpt.study.bench.throughput import CASE
from modegpt.study.figures.throughput import plain
from modegpt.study.results import DENSE, MEAN, Row, loss_per_million, number
from modegpt.study.verdicts import (
    FAILED,
    MARGIN,
    RATIO,
    REPRODUCED,
    SHAPE,
    WEIGHTS,
    Compared,
    Evidence,
    Missing,
    asks,
    claims,
    decided,
    kept_error,
    log_ratio,
    measured_on,
    toy,
    verdict,
    with_spread,
)

PAPER_PERPLEXITY = {  # WikiText-2, windows of 4,096 tokens
    "llama-2-7b": {0.0: 5.12, 0.1: 5.48, 0.2: 6.16, 0.3: 7.51, 0.4: 8.41, 0.5: 11.88},
    "llama-2-13b": {0.0: 4.57, 0.1: 4.83, 0.2: 5.29, 0.3: 6.10, 0.4: 6.95, 0.5: 8.95},
}
PAPER_SECONDS = {"llama-2-7b": 4 * 3600 + 9 * 60, "llama-2-13b": 8 * 3600 + 26 * 60}  # one A100
PAPER_ACCURACY = {  # share removed -> model, mean accuracy of the five tasks dense and compressed
    0.25: ("llama-3-8b", 0.7275, 0.6396),
    0.3: ("llama-2-7b", 0.6900, 0.6078),
}
CHANCE = statistics.mean(GUESSING.values())  # of the five tasks for a model that guesses


def above_guessing(accuracy: float, dense: float) -> float:
    """The share that is kept of what the dense model's mean accuracy has above guessing."""
    return (accuracy - CHANCE) / (dense - CHANCE)


def _table(evidence: Evidence, name: str) -> dict[str, Any]:
    files = [file for file in evidence.files if any(name in row.model.lower() for row in file.rows)]
    variants = ("global allocation", "windows of 4096")
    known = [row for file in files for row in file.find(what="perplexity", data="wikitext2") if row.value]
    rows = [row for row in known if row.variant in variants and row.details["seq_len"] == 4096]
    evidence.used.extend(files)
    if not any(row.ratio for row in rows):
        raise Missing("its weights are needed: `make reproduce PROFILE=paper MODEL=...`", WEIGHTS)
    ours = {ratio: [row.value for row in rows if row.ratio == ratio] for ratio in PAPER_PERPLEXITY[name]}
    ours = {ratio: statistics.mean(values) for ratio, values in ours.items() if values}
    worst = max(abs(value / PAPER_PERPLEXITY[name][ratio] - 1) for ratio, value in ours.items())
    words = " / ".join(f"{value:.2f} ({ratio:.0%})" for ratio, value in sorted(ours.items()))
    numbers = []
    for ratio, value in sorted(ours.items()):
        paper = PAPER_PERPLEXITY[name][ratio]
        numbers.append(Compared(f"perplexity at {ratio:.0%}, {name}", paper, value, 0.95 * paper, 1.05 * paper))
    return {
        "ours": words,
        "tolerance": "5 % each; in shape: 20 %",
        "verdict": REPRODUCED if worst <= 0.05 else SHAPE if worst <= 0.2 else FAILED,
        "why": f"largest difference {worst:.1%}",
        "numbers": tuple(numbers),
    }


@claims("LLaMA-2 7B, WikiText-2 perplexity at 0 to 50 %", "5.12 / 5.48 / 6.16 / 7.51 / 8.41 / 11.88")
def perplexity_7b(evidence: Evidence) -> dict[str, Any]:
    return _table(evidence, "llama-2-7b")


@claims("LLaMA-2 13B, WikiText-2 perplexity at 0 to 50 %", "4.57 / 4.83 / 5.29 / 6.10 / 6.95 / 8.95")
def perplexity_13b(evidence: Evidence) -> dict[str, Any]:
    return _table(evidence, "llama-2-13b")


def _accuracies(evidence: Evidence) -> tuple[Row, list[Row], Callable[[Row, float], float]]:
    """Mean accuracies at the paper's ratios: the dense model's, the compressed ones', and `kept_error` of one."""
    rows = evidence.of("retention").rows(what="accuracy")
    dense = next((row for row in rows if row.method == DENSE and row.data == MEAN), None)
    small = [row for row in rows if row.method != DENSE and row.data == MEAN and row.ratio in PAPER_ACCURACY]
    if dense is None or not small:
        raise Missing("it was not measured")
    if dense.spread > 0.02:
        raise Missing(f"too few questions: the dense mean is {dense.value:.1%} ± {dense.spread:.1%}")

    def error(row: Row, kept: float) -> float:
        pair = [[task for task in rows if (task.variant, task.ratio) == (r.variant, r.ratio)] for r in (dense, row)]
        tasks = [{task.data: task for task in side if task.data != MEAN} for side in pair]
        if not tasks[0] or tasks[0].keys() != tasks[1].keys():
            return kept_error([dense], [row], kept)
        return kept_error(*([side[name] for name in sorted(side)] for side in tasks), kept)

    return dense, small, error


def _kept(
    dense: Row, small: list[Row], share: Callable[[float, float], float], what: str, tolerance: float
) -> tuple[bool, dict[Compared, Row]]:
    """Whether the paper's models keep the share that the paper's tables say, and the numbers behind it with their rows.

    A model of the paper's is compared at its own ratio only, another one at every ratio.
    """
    numbers, own = {}, {}
    for row in small:
        model, whole, compressed = PAPER_ACCURACY[row.ratio]
        theirs, text = share(compressed, whole), row.variant.removeprefix("calibrated on ")
        low, high = theirs - tolerance, theirs + tolerance
        about = Compared(f"{what} at {row.ratio:.0%}, {text}", theirs, share(row.value, dense.value), low, high)
        numbers[about] = row
        own |= {about: row} if model in row.model.lower() else {}
    return bool(own) and all(about.agrees for about in own), own or numbers


@claims(
    "Zero-shot accuracy kept at 25 to 30 %",
    "90 to 95 % (abstract); 87.9 % (LLaMA-3 8B, 25 %), 88.1 % (LLaMA-2 7B, 30 %)",
)
def retention(evidence: Evidence) -> dict[str, Any]:
    dense, small, error_of = _accuracies(evidence)
    same, numbers = _kept(dense, small, operator.truediv, "accuracy kept", 0.05)
    for about, row in numbers.items():
        error = error_of(row, about.ours) / dense.value
        decided(about.ours - about.low, error, f"too few questions: {about.ours:.1%} ± {error:.1%} is kept")
    parts = [f"{row.value / dense.value:.1%} at {row.ratio:.0%} ({row.variant})" for row in small]
    return {
        "ours": "; ".join(parts),
        "tolerance": "5 points; in shape: not below that",
        "verdict": verdict(same, all(about.ours >= about.low for about in numbers)),
        "numbers": tuple(numbers),
        "why": f"guessing alone keeps {CHANCE / dense.value:.0%}, so read the next claim with it; {measured_on(dense)}",
    }


@claims(
    "The same, of what lies above guessing",
    "77 % (LLaMA-3 8B, 25 %), 76 % (LLaMA-2 7B, 30 %), worked out from its tables",
)
def retention_above_guessing(evidence: Evidence) -> dict[str, Any]:
    dense, small, error_of = _accuracies(evidence)
    same, numbers = _kept(dense, small, above_guessing, "kept above guessing", 0.1)
    parts, errors = [], []
    for row in small:
        kept = above_guessing(row.value, dense.value)
        errors.append(error_of(row, kept) / (dense.value - CHANCE))
        parts.append(f"{kept:.0%} ± {errors[-1]:.0%} at {row.ratio:.0%} ({row.variant})")
    most = [above_guessing(row.value, dense.value) - 0.5 for row in small]
    if not any(lead < -2 * error for lead, error in zip(most, errors, strict=True)):  # one that is below decides
        for lead, error, part in zip(most, errors, parts, strict=True):
            decided(lead, error, f"too few questions: {part}", "more questions")
    return {
        "ours": "; ".join(parts),
        "tolerance": "10 points; in shape: more than half, by two standard errors",
        "verdict": verdict(same, all(lead > 0 for lead in most)),
        "numbers": tuple(numbers),
        "why": f"dense {dense.value:.1%} where guessing gives {CHANCE:.0%}; {measured_on(dense)}",
    }


@claims("Global against uniform allocation at 30 %: perplexity", "7.51 against 9.06: 17 % lower (LLaMA-2 7B)")
def allocation(evidence: Evidence) -> dict[str, Any]:
    found = evidence.of("allocation")
    ours, spread = found.mean(variant="global allocation", ratio=RATIO)
    uniform, other = found.mean(variant="uniform allocation", ratio=RATIO)
    pairs = [found.rows(variant=f"{kind} allocation", ratio=RATIO) for kind in ("global", "uniform")]
    if len(pairs[0]) == 1:
        raise Missing("one draw of the calibration text: how far draws differ is unknown")
    gain, noise = 1 - ours / uniform, max(spread, other) / uniform
    windows = [log_ratio(*pair)[1] for pair in zip(*pairs, strict=True) if "losses" in pair[0].details]
    if windows:  # without each window's loss the same windows cannot be paired
        decided(gain, max(windows), f"too few windows: {gain:.1%} lower")
    about = Compared("what global allocation gains over uniform", 0.17, gain, 0.12, 0.22)
    first = pairs[0][0]
    return {
        "ours": f"{with_spread(ours, spread)} against {with_spread(uniform, other)} ({-gain:+.1%})",
        "tolerance": "5 points; in shape: more than the spread of the draws",
        "verdict": verdict(about.agrees and "llama-2-7b" in first.model.lower(), gain > noise),
        "why": f"{measured_on(first)}; the paper's epsilon could not be read",
        "numbers": (about,),
    }


def _ahead(evidence: Evidence, ratio: float, theirs: float) -> dict[str, Any]:
    """Whether MoDeGPT's perplexity is the lowest; `theirs` is what the paper's is of its rival's."""
    small, large, words, numbers = [], [], [], []  # whether ours is behind on the kit's own models, and on others
    for mine in evidence.all_of("compare").tables(what="perplexity", ratio=ratio):
        rivals = [row for name, row in mine.items() if not name.startswith("modegpt")]
        if "modegpt" not in mine or not rivals:
            continue
        ours, rival = mine["modegpt"], min(rivals, key=lambda row: row.value)
        words.append(f"{ours.model}, {ours.data}: {number(ours.value)} against {rival.method}'s {number(rival.value)}")
        what = f"perplexity / best rival's at {ratio:.0%}: {ours.model}, {ours.data}"
        numbers.append(Compared(what, theirs, ours.value / rival.value, 0.0, 1 - MARGIN))
        (small if toy(ours) else large).append((ours.model, not numbers[-1].agrees))
        if not toy(ours):
            mean, error = log_ratio(ours, rival)
            decided(mean - math.log(1 - MARGIN), error, f"too few windows: {words[-1]}")
    if not words:
        raise Missing("it was not measured")
    behind = ", ".join(dict.fromkeys(name for name, worse in small if worse))
    note = f"not ahead on {behind}, left out as hardly trained; " if behind else ""
    return {
        "ours": "; ".join(words),
        "tolerance": f"in shape: the lowest by {MARGIN:.0%} on every model that the kit did not train",
        "verdict": FAILED if any(worse for _, worse in large or small) else SHAPE,
        "why": f"{note}other models, one draw; LLM Surgeon and LLM-Pruner need gradients and were not run",
        "numbers": tuple(numbers),
    }


@claims("Better than other methods at 30 %", "7.51 against SliceGPT's 10.47 (LLaMA-2 7B)")
def others(evidence: Evidence) -> dict[str, Any]:
    return _ahead(evidence, RATIO, 7.51 / 10.47)


@claims(
    "Better than other methods at 50 %",
    "11.88 against SliceGPT's 24.82, ShortGPT's 268.11 and, with gradients, LLM Surgeon's 15.38 (LLaMA-2 7B)",
)
def others_at_half(evidence: Evidence) -> dict[str, Any]:
    return _ahead(evidence, 0.5, 11.88 / 24.82)


@claims("Time to compress", "4 h 09 min (7B), 8 h 26 min (13B), one A100")
def seconds(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.all_of(*ONE_GPU).rows(what="compression")
    parts, faster, numbers = [], [], []
    for name, paper in PAPER_SECONDS.items():
        if mine := [row for row in rows if name in row.model.lower()]:
            best = min(mine, key=lambda row: row.value)
            parts.append(f"{best.value:.0f} s ({name} shape)")
            faster.append(paper / best.value)
            numbers.append(Compared(f"seconds to compress, {name}", paper, best.value, 0.0, paper))
    if not parts:
        raise Missing("a GPU is needed: `modegpt bench compress`")
    by_text = {pair.shape: f"{pair.literal:.0f} s ({pair.shape})" for pair in side_by_side(evidence.files[::-1])}
    text = f"; its text, step by step: {', '.join(by_text.values())}, so our shortcuts explain little of it"
    return {
        "ours": ", ".join(parts),
        "tolerance": "not slower",
        "verdict": SHAPE if min(faster) >= 1 else FAILED,
        "why": f"{min(faster):.0f} times as fast; random weights, another GPU{text if by_text else ''}",
        "numbers": tuple(numbers),
    }


@claims("Throughput", "up to 46 % more")
def throughput(evidence: Evidence) -> dict[str, Any]:
    rows = [row for row in evidence.rows(unit="tokens/s") if _sped_up(row)]
    if not rows:
        raise Missing("a GPU is needed: `modegpt bench throughput`")
    best = max(rows, key=lambda row: row.details["speed_up"])
    evidence.used[:] = [file for file in evidence.used if any(row is best for row in file.rows)]
    gain = best.details["speed_up"] - 1
    dense = [row for file in evidence.used for row in file.find(what=best.what, model=best.model, method=DENSE)]
    dense = [row for row in dense if row.value and all(row.details.get(n) == best.details.get(n) for n in CASE)]
    error = math.hypot(*((row.spread or 0.0) / row.value for row in (best, *dense)))
    decided(gain - 0.1, (1 + gain) * error, f"too noisy a machine: {gain:.0%} more, timings differ by {error:.0%}")
    device = evidence.used[0].device  # no two cards are mixed
    here = [row for file in evidence.files if file.device == device for row in file.find(model=best.model)]
    cases = [row.details["speed_up"] for row in here if _sped_up(row)]
    slower = sum(case < 1 for case in cases)
    return {
        "ours": f"up to {gain:.0%} more ({best.what}, {best.ratio:.0%} removed, {best.model}, {best.variant})",
        "tolerance": "in shape: more than 10 %",
        "verdict": SHAPE if gain > 0.1 else FAILED,
        "why": f"the best of {len(cases)} cases: their median is {statistics.median(cases) - 1:.0%} more, {slower} are"
        " slower than dense; the paper's ratio, batch and length could not be read",
        "numbers": (Compared("best throughput, of the dense model's", 1.46, 1 + gain, 1.31, 1.61),),
    }


def _sped_up(row: Row) -> bool:
    """Whether it is a compressed model's speed beside the dense one's; a fused model is not the paper's."""
    return bool(row.unit == "tokens/s" and row.ratio and "speed_up" in row.details and plain(row))


@claims("Where the time goes", "most of it into the value-output SVDs")
def value_output(evidence: Evidence) -> dict[str, Any]:
    found = {row.variant: row.value for row in evidence.of("time").rows(what="time")}
    share = found["value-output: SVD"] / sum(value for step, value in found.items() if step != "evaluate")
    by_text = {}
    for pair in side_by_side(evidence.files[::-1]):  # the first file's counts
        steps = steps_of(pair.run, pair.shape, "literal")
        evidence.used.append(pair.run)
        by_text[pair.shape] = steps["value_output"] / sum(steps.values())
    numbers = [Compared("time in value-output (most: over half)", 0.5, share, 0.5, 1.0)]
    ours, why = f"{share:.0%} of calibrating and compressing", "ours: on purpose, by an exact shortcut"
    if by_text:
        numbers.append(Compared("the same, by the paper's text", 0.5, max(by_text.values()), 0.5, 1.0))
        ours += f"; by its text, {', '.join(f'{part:.0%} ({name} shape)' for name, part in by_text.items())}"
        why += "; its text: as we read it, on another GPU, for its program was never released"
    return {
        "ours": ours,
        "tolerance": "more than half",
        "verdict": SHAPE if any(part.agrees for part in numbers) else FAILED,
        "why": why,
        "numbers": tuple(numbers),
    }


@asks(
    "Memory to compress, 7B shape",
    "MLP correlations peak at 23.3 GiB for a 13.8 GiB model; whether that counts the model we could not tell",
)
def memory(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.all_of(*ONE_GPU).rows(what="peak memory above the model", model="llama-2-7b")
    peaks = {row.variant: f"{row.value / 2**30:.1f} GiB above the model, {row.variant}" for row in rows}
    return {"ours": f"llama-2-7b shape: {'; '.join(peaks.values())}", "verdict": ""}


@asks("The MLP's re-solve against selection only, 30 %", "none read; it is the least-squares optimum")
def resolve(evidence: Evidence) -> dict[str, Any]:
    found = evidence.of("resolve")
    ours, spread = found.mean(variant="selection and re-solve", ratio=RATIO)
    alone, other = found.mean(variant="selection only", ratio=RATIO)
    words = f"{with_spread(ours, spread)} against {with_spread(alone, other)} ({ours / alone - 1:+.1%})"
    return _measured(found, [words])


@asks("Perplexity against calibration samples, 30 %", "none read; it takes 128 of 2,048 tokens")
def size(evidence: Evidence) -> dict[str, Any]:
    found, words = evidence.of("size"), []
    for count in sorted({row.details["samples"] for row in found.rows()}):
        mean, spread = found.mean(variant=f"{count} samples")
        words.append(f"{count}: {with_spread(mean, spread)}")
    return _measured(found, words)


@asks(
    "Calibration text against evaluation text, 30 %",
    "WikiText-2 for perplexity, Alpaca for tasks; no comparison read",
)
def texts(evidence: Evidence) -> dict[str, Any]:
    found, words = evidence.of("calibration"), []
    for variant, data in dict.fromkeys((row.variant, row.data) for row in found.rows()):
        mean, spread = found.mean(variant=variant, data=data)
        words.append(f"{variant}, {data}: {with_spread(mean, spread)}")
    return _measured(found, words)


@asks("Loss for each million parameters taken from one module alone", "none read")
def modules(evidence: Evidence) -> dict[str, Any]:
    found = evidence.of("modules")
    rows, cost = found.rows(), {}
    dense = next(row for row in rows if row.method == DENSE)
    for row in rows:
        if row.method != DENSE:
            cost.setdefault(f"{row.variant}, {row.ratio:.1%}", []).append(loss_per_million(row, dense))
    return _measured(found, [f"{name}: {statistics.mean(values):.4f} nats" for name, values in cost.items()])


@asks("The length of the window", "4,096 tokens, it is believed")
def windows(evidence: Evidence) -> dict[str, Any]:
    found = evidence.of("windows")
    return _measured(
        found, [f"{row.data}, {row.variant}, {row.ratio:.0%}: {number(row.value)}" for row in found.rows()]
    )


def _measured(evidence: Evidence, words: list[str]) -> dict[str, Any]:
    """No number of the paper's, no verdict."""
    return {"ours": f"{evidence.rows()[0].model}: {'; '.join(words)}", "verdict": ""}
