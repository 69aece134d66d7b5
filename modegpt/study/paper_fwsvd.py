"""What the paper of FWSVD claims (arXiv 2207.00112), and others of it, and the rule for each claim."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from modegpt.study.results import DENSE, Results, Row, number
from modegpt.study.verdicts import (
    FAILED,
    MARGIN,
    SHAPE,
    Compared,
    Evidence,
    Missing,
    asks,
    claims,
    decided,
    log_ratio,
    toy,
)

RANKS = "33% of the ranks"
AGAIN = ", fine-tuned again"
PAPER_LEAD = 0.175
LITTLE = 0.01  # accuracy that is "little" to lose

Score = Callable[[Row], float]


def leads(
    rows: list[Row], one: Mapping[str, Any], other: Mapping[str, Any], of: Score = lambda row: row.value
) -> dict[str, tuple[float, float, int]]:
    """How far `one` is above `other`, for each model: mean, standard error and number of pairs.

    A pair has the same task and seed. The seeds share the test texts, whose own error comes on top.
    """

    def values(which: Mapping[str, Any]) -> dict[tuple[str, str, int], float]:
        mine = [row for row in rows if all(getattr(row, name) == wanted for name, wanted in which.items())]
        return {(row.model, row.data, row.seed): of(row) for row in mine}

    first, second = values(one), values(other)
    found: dict[str, list[float]] = {}
    for key in sorted(first.keys() & second.keys()):
        found.setdefault(key[0], []).append(first[key] - second[key])
    if not found or min(map(len, found.values())) < 2:
        raise Missing("one seed: how far seeds differ is unknown")
    return {
        model: (statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5, len(pairs))
        for model, pairs in found.items()
    }


def ahead(mine: Mapping[str, tuple[float, float, int]], paper: float | None = None) -> bool:
    """Whether the lead is more than two standard errors on every model; Missing where a lead as the paper's may be."""
    for lead, error, _ in mine.values():
        if paper and lead <= 2 * error and lead + 2 * error > paper:
            raise Missing(f"too few seeds: {_points(lead, error)} leaves room for both")
    return all(lead > 2 * error for lead, error, _ in mine.values())


def over_guessing(file: Results, **fields: Any) -> dict[str, float]:
    """How far each model with these fields lies above always saying the largest class, in the mean over its tasks."""
    gains: dict[str, list[float]] = {}
    for row in file.find(**fields):
        gains.setdefault(row.model, []).append(row.value - file.settings[row.model][row.data]["majority"])
    return {model: statistics.mean(mine) for model, mine in gains.items()}


def above_guessing(found: Evidence, mine: Mapping[str, Any], *pair: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The models that one of a pair of methods leaves above always saying the largest class, and words on the others.

    A model that knows nothing any more says nothing of either method.
    """
    (file,) = found.files
    gains = [over_guessing(file, **which) for which in pair]
    kept = {model: lead for model, lead in mine.items() if max(gain[model] for gain in gains) > 0}
    if not kept:
        raise Missing("both methods bring every model below always saying the largest class")
    out = ", ".join(mine.keys() - kept.keys())
    return kept, f"; both bring {out} below always saying the largest class, so it is left out" if out else ""


def _points(lead: float, error: float) -> str:
    return f"{100 * lead:+.1f} ± {100 * error:.1f} points"


def _said(
    mine: Mapping[str, tuple[float, float, int]], agrees: bool, paper: float | None, tolerance: str, low: float | None
) -> dict[str, Any]:
    compared = [
        Compared(f"lead in accuracy, {model}", paper, lead, 2 * error if low is None else low, 1.0)
        for model, (lead, error, _) in mine.items()
        if paper is not None
    ]
    return {
        "ours": "; ".join(f"{model}: {_points(lead, error)}" for model, (lead, error, _) in mine.items()),
        "tolerance": tolerance,
        "verdict": SHAPE if agrees else FAILED,
        "why": f"other models and tasks; {next(iter(mine.values()))[2]} pairs of task and seed",
        "numbers": tuple(compared),
    }


ABOVE = "in shape: above by two standard errors, on every model"


@claims(
    "FWSVD against plain SVD at 33 % of the ranks, not fine-tuned again: accuracy",
    "17.5 points above (BERT-base, mean of GLUE and CoNLL)",
    "FWSVD",
)
def accuracy(evidence: Evidence) -> dict[str, Any]:
    pair = [{"method": method, "variant": RANKS} for method in ("fwsvd", "svd")]
    found = evidence.of("fwsvd.ranks")
    mine, note = above_guessing(found, leads(found.rows(), *pair), *pair)
    said = _said(mine, ahead(mine, PAPER_LEAD), PAPER_LEAD, ABOVE, None)
    return said | {"why": said["why"] + note}


@claims(
    "Fine-tuned again, FWSVD against plain SVD at 33 % of the ranks: accuracy",
    "above on average (83.6, the best of the compressed models)",
    "FWSVD",
)
def again(evidence: Evidence) -> dict[str, Any]:
    pair = ({"method": method, "variant": RANKS + AGAIN} for method in ("fwsvd", "svd"))
    mine = leads(evidence.of("fwsvd.ranks").rows(), *pair)
    return _said(mine, ahead(mine), None, ABOVE, None)


@claims(
    "FWSVD's weights are further from the old ones than plain SVD's",
    "a larger reconstruction error, and a better accuracy",
    "FWSVD",
)
def reconstruction(evidence: Evidence) -> dict[str, Any]:
    found = evidence.of("fwsvd.ranks")
    rows = found.rows()
    pair = [{"method": method, "variant": RANKS} for method in ("fwsvd", "svd")]
    errors, note = above_guessing(found, leads(rows, *pair, of=lambda row: row.details["weight_error"]), *pair)
    scores = {model: lead for model, lead in leads(rows, *pair).items() if model in errors}
    both = {model: (100 * error, 100 * scores[model][0]) for model, (error, _, _) in errors.items()}
    words = [f"{model}: error {error:+.1f}, accuracy {score:+.1f} points" for model, (error, score) in both.items()]
    agrees = ahead(errors) and ahead(scores)
    return {
        "ours": "; ".join(words),
        "tolerance": "in shape: both larger, on every model",
        "verdict": SHAPE if agrees else FAILED,
        "why": f"other models and tasks{note}",
    }


@claims(
    "An already compact model, 30 % smaller by FWSVD and fine-tuned again: accuracy lost",
    "none (DistilBERT, MRPC, 30 %); none (TinyBERT, 18 %); 0.4 points (ALBERT-large, 14 %)",
    "FWSVD",
)
def compact(evidence: Evidence) -> dict[str, Any]:
    one = {"method": "fwsvd", "variant": "30% smaller" + AGAIN}
    other = {"method": DENSE, "variant": "compact by MoDeGPT" + AGAIN}
    mine = leads(evidence.of("fwsvd.compact").rows(), one, other)
    agrees = all(lead >= -LITTLE for lead, _, _ in mine.values())
    said = _said(mine, agrees, 0.0, "in shape: at most a point lost, on every model", -LITTLE)
    return said | {"why": f"{said['why']}; the compact models are MoDeGPT's, with 30 % of the blocks removed"}


@claims(
    "A task model compressed by FWSVD against a small model, fine-tuned directly",
    "better than compact models of that size, without their pre-training",
    "FWSVD",
)
def direct(evidence: Evidence) -> dict[str, Any]:
    ranks, small = (evidence.of(part).rows() for part in ("fwsvd.ranks", "fwsvd.direct"))
    one = {"method": "fwsvd", "variant": RANKS + AGAIN}
    other = {"method": "fewer layers", "variant": f"as large as {RANKS}{AGAIN}"}
    mine = leads([*ranks, *small], one, other)
    said = _said(mine, ahead(mine), None, ABOVE, None)
    return said | {"why": f"{said['why']}; the small model is the same one's first layers, pre-trained as they are"}


@asks("FWSVD at 33 % of the ranks: the right labels against shuffled ones", "none read")
def labels(evidence: Evidence) -> dict[str, Any]:
    one = {"method": "fwsvd", "variant": RANKS}
    return _no_verdict(evidence, one, one | {"variant": f"weights of shuffled labels, {RANKS}"})


@asks("FWSVD against MoDeGPT on tasks, as large as at 33 % of the ranks, not fine-tuned again", "none")
def beside_modegpt(evidence: Evidence) -> dict[str, Any]:
    one, other = {"method": "fwsvd", "variant": RANKS}, {"method": "modegpt", "variant": f"as large as {RANKS}"}
    return _no_verdict(evidence, one, other)


@asks("FWSVD at 33 % of the ranks: gradients against how loud the inputs are", "none")
def loudness(evidence: Evidence) -> dict[str, Any]:
    one = {"method": "fwsvd", "variant": RANKS}
    return _no_verdict(evidence, one, one | {"variant": f"weights of the inputs alone, {RANKS}"}, "fwsvd.vary")


@asks("FWSVD at 33 % of the ranks against whitening, which sees the inputs together", "none")
def whitening(evidence: Evidence) -> dict[str, Any]:
    other = {"method": "svd-llm", "variant": f"whitened by the inputs, {RANKS}"}
    return _no_verdict(evidence, {"method": "fwsvd", "variant": RANKS}, other, "fwsvd.vary")


def _no_verdict(
    evidence: Evidence, one: Mapping[str, Any], other: Mapping[str, Any], experiment: str = "fwsvd.ranks"
) -> dict[str, Any]:
    found = evidence.of(experiment)
    mine, note = above_guessing(found, leads(found.rows(), one, other), one, other)
    words = "; ".join(f"{model}: {_points(*lead[:2])}" for model, lead in mine.items())
    return {"ours": words + note, "verdict": ""}


@claims(
    "FWSVD against plain SVD at 20 %, not fine-tuned: perplexity",
    "1,727 against 20,061 (LLaMA-7B, WikiText-2, as others ran it)",
    "FWSVD",
)
def language_models(evidence: Evidence) -> dict[str, Any]:
    words, numbers = [], []
    for mine in evidence.all_of("compare").tables(what="perplexity", ratio=0.2):
        if not {"fwsvd", "svd"} <= mine.keys() or toy(mine["fwsvd"]):
            continue
        model, data = mine["fwsvd"].model, mine["fwsvd"].data
        mean, error = log_ratio(mine["fwsvd"], mine["svd"])
        decided(mean - math.log(1 - MARGIN), error, "too few windows")
        words.append(f"{model}, {data}: {number(mine['fwsvd'].value)} against {number(mine['svd'].value)}")
        what = f"perplexity of FWSVD / of SVD at 20%: {model}, {data}"
        numbers.append(Compared(what, 1727 / 20061, math.exp(mean), 0.0, 1 - MARGIN))
    if not numbers:
        raise Missing("it was not measured")
    return {
        "ours": "; ".join(words),
        "tolerance": f"in shape: lower by {MARGIN:.0%} on every model that the kit did not train",
        "verdict": SHAPE if all(about.agrees for about in numbers) else FAILED,
        "why": "other models; both methods ruin the model, as they are meant to be fine-tuned afterwards",
        "numbers": tuple(numbers),
    }
