"""What the paper of FWSVD claims (arXiv 2207.00112), and others of it, and the rule for each claim."""

import math
import statistics
from typing import Any

from modegpt.study.results import number
from modegpt.study.verdicts import FAILED, MARGIN, SHAPE, Compared, Evidence, Missing, claims, decided, log_ratio

RANKS = "33% of the ranks"
PAPER_LEAD = 0.175


@claims(
    "FWSVD against plain SVD at 33 % of the ranks, not fine-tuned again: accuracy",
    "17.5 points above (BERT-base, mean of GLUE and CoNLL)",
    "FWSVD",
)
def accuracy(evidence: Evidence) -> dict[str, Any]:
    found = evidence.all_of("fwsvd.ranks", "fwsvd").rows(what="accuracy", variant=RANKS)
    model = max(found, key=lambda row: row.model != "opt-mini").model
    by_seed: dict[int | None, list[float]] = {}
    known = {(row.method, row.data, row.seed): row.value for row in found if row.model == model}
    for method, data, seed in known:
        if method == "fwsvd" and ("svd", data, seed) in known:
            by_seed.setdefault(seed, []).append(known["fwsvd", data, seed] - known["svd", data, seed])
    leads = [statistics.mean(tasks) for tasks in by_seed.values()]
    if len(leads) < 2:
        raise Missing("one seed: how far seeds differ is unknown")
    lead, error = statistics.mean(leads), statistics.stdev(leads) / len(leads) ** 0.5
    ahead, words = lead > 2 * error, f"{100 * lead:+.1f} ± {100 * error:.1f} points"
    if not ahead and lead + 2 * error > PAPER_LEAD:
        raise Missing(f"too few seeds: {words} leaves room for both")
    ruled_out = "" if ahead else "; as large a lead as the paper's is ruled out"
    tasks = ", ".join(sorted({data for _, data, _ in known}))
    return {
        "ours": f"{words} ({model}, {tasks}, {len(leads)} seeds)",
        "tolerance": "in shape: above by two standard errors over the seeds",
        "verdict": SHAPE if ahead else FAILED,
        "why": f"another model and other, smaller tasks{ruled_out}",
        "numbers": (Compared("lead of FWSVD in accuracy", PAPER_LEAD, lead, 2 * error, 1.0),),
    }


@claims(
    "FWSVD against plain SVD at 20 %, not fine-tuned: perplexity",
    "1,727 against 20,061 (LLaMA-7B, WikiText-2, as others ran it)",
    "FWSVD",
)
def language_models(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.all_of("compare").rows(what="perplexity", ratio=0.2)
    words, numbers = [], []
    for model, data in dict.fromkeys((row.model, row.data) for row in rows):
        mine = {row.method: row for row in rows if (row.model, row.data) == (model, data)}
        if not {"fwsvd", "svd"} <= mine.keys():
            continue
        mean, error = log_ratio(mine["fwsvd"], mine["svd"])
        decided(mean - math.log(1 - MARGIN), error, "too few windows")
        words.append(f"{model}, {data}: {number(mine['fwsvd'].value)} against {number(mine['svd'].value)}")
        what = f"perplexity of FWSVD / of SVD at 20%: {model}, {data}"
        numbers.append(Compared(what, 1727 / 20061, math.exp(mean), 0.0, 1 - MARGIN))
    if not numbers:
        raise Missing("it was not measured")
    return {
        "ours": "; ".join(words),
        "tolerance": f"in shape: lower by {MARGIN:.0%} on every model",
        "verdict": SHAPE if all(about.agrees for about in numbers) else FAILED,
        "why": "other models; both methods ruin the model, as they are meant to be fine-tuned afterwards",
        "numbers": tuple(numbers),
    }
