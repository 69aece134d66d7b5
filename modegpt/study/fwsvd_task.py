"""FWSVD's own claims, on tasks with labels: `modegpt study fwsvd-task`.

The paper (Hsu et al., ICLR 2022, arXiv 2207.00112) fine-tunes BERT on a task, factorises every linear map of its
blocks, keeps 33 % of the ranks, and fine-tunes again: Adam, 3 epochs at 2e-5 in batches of 32. Three parts do the same:

ranks: FWSVD beside plain SVD at several shares of the ranks, before and after the second fine-tuning; with Fisher
    weights of shuffled labels, of another task and of few examples as controls; MoDeGPT at the same sizes.
compact: a model that MoDeGPT has already made smaller, fine-tuned, then a further 9 to 30 % smaller by both.
direct: the same model with its first layers only, as large as the compressed one, fine-tuned directly.

A unit is one part for one model, task and seed, in a file of its own, so several processes can share the work. What is
there is not measured again; the files of all units together make `fwsvd.PART.json`.
"""

import copy
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from modegpt import classify
from modegpt.console import command_line, out, show_table
from modegpt.methods.fwsvd import batched_fisher_rows, weighted_by_rows
from modegpt.methods.low_rank import factorize_, rank_for_ratio, rank_for_share
from modegpt.pipeline import compress
from modegpt.report import count_parameters
from modegpt.sources import find_device, load_model, load_text, resolve_model
from modegpt.sources.labelled import Example, load_labelled
from modegpt.study.figures import accuracy_on_tasks
from modegpt.study.results import DENSE, Results, Row, load, save
from modegpt.style import keep

METHODS = ("svd", "fwsvd")
MAX_TOKENS = 96
FEW = 16  # examples, for the control

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """What is measured, for all units of a run.

    `shares` of the full ranks, those of them that are fine-tuned `again`, those at which the `controls` run; `removed`
    shares of an already compact model's parameters, and those fine-tuned again; how many examples to `train` and to
    `test` on at most; MoDeGPT's ratio for the `compact` model, and the `samples` of that `length` it is calibrated on.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.33, 0.4, 0.45)
    again: tuple[float, ...] = (0.33,)
    controls: tuple[float, ...] = (0.2, 0.33)
    removed: tuple[float, ...] = (0.09, 0.18, 0.3)
    removed_again: tuple[float, ...] = (0.3,)
    train: int = 1280
    test: int = 1000
    epochs: int = 3
    learning_rate: float = 5e-5
    compact: float = 0.3
    samples: int = 64
    length: int = 512


class Unit:
    """One model on one task with one seed; `other` is another task's, a control."""

    def __init__(self, model: str, task: str, seed: int, device: torch.device, plan: Plan) -> None:
        self.model, self.seed, self.device, self.plan = model, seed, device, plan
        draw = random.Random(0)  # the same examples for all seeds
        self.train, self.test = (
            draw.sample(part, min(most, len(part)))
            for part, most in zip(load_labelled(task), (plan.train, plan.test), strict=True)
        )
        self.names = {"model": Path(model).name, "data": Path(task).stem, "seed": seed}
        self.tokenizer = classify.load_tokenizer(resolve_model(model))
        self.other = self

    def classifier(self) -> PreTrainedModel:
        """The model with a head for the task's labels, not yet trained."""
        labels = len({label for _, label in self.train})
        return classify.load_classifier(resolve_model(self.model), self.tokenizer, labels, self.seed).to(self.device)

    @cached_property
    def fitted(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """The fine-tuned model, and the Fisher information of its rows on the training examples."""
        model = self.classifier()
        for linear in block_linears(model).values():
            for share in self.plan.shares:  # one that saves nothing is refused before any work
                rank_for_share(share, *linear.weight.shape)
        self.tune(model)
        return model, self.fisher(model, self.train)

    def tune(self, model: PreTrainedModel) -> PreTrainedModel:
        """Three epochs, in place."""
        training = {"epochs": self.plan.epochs, "learning_rate": self.plan.learning_rate, "max_tokens": MAX_TOKENS}
        classify.fine_tune(model, self.train, self.tokenizer, seed=self.seed, **training)
        return model

    def fisher(self, model: PreTrainedModel, examples: list[Example]) -> dict[str, Tensor]:
        """The Fisher information of every block linear's rows, summed over these examples."""
        inputs = classify.batches(classify.by_length(examples), self.tokenizer, classify.BATCH, self.device, MAX_TOKENS)
        return batched_fisher_rows(model, block_linears(model), inputs)

    def row(self, method: str, variant: str, model: PreTrainedModel, again: bool = False, **details: Any) -> Row:
        """The model's accuracy on the test examples."""
        value = classify.accuracy(model, self.test, self.tokenizer, MAX_TOKENS)
        details |= {"again": again, "parameters": count_parameters(model)}
        variant += ", fine-tuned again" if again else ""
        return Row(
            what="accuracy", unit="share", value=value, method=method, variant=variant, details=details, **self.names
        )

    def both(self, method: str, variant: str, model: PreTrainedModel, again: bool, **details: Any) -> Iterator[Row]:
        """A row as the model is and, if `again`, one after fine-tuning it once more, in place."""
        yield self.row(method, variant, model, **details)
        if again:
            yield self.row(method, variant, self.tune(model), again=True, **details)


def ranks(unit: Unit) -> Iterator[Row]:
    """SVD, FWSVD, its controls and MoDeGPT, for shares of the full ranks."""
    plan = unit.plan
    dense, fisher = unit.fitted
    yield unit.row(DENSE, "whole", dense, share=1.0)
    yield unit.row(DENSE, "whole", unit.tune(copy.deepcopy(dense)), again=True, share=1.0)

    sizes = {}
    for method, weights in (("svd", None), ("fwsvd", fisher)):
        factors = factors_of(dense, weights)
        for share in plan.shares:
            small, error = factorized(dense, factors, lambda m, n, share=share: rank_for_share(share, m, n))
            sizes[share] = count_parameters(small)
            yield from unit.both(method, _of(share), small, share in plan.again, share=share, weight_error=error)

    for name, weights in controls(unit, dense):
        factors = factors_of(dense, weights)
        for share in plan.controls:
            small, error = factorized(dense, factors, lambda m, n, share=share: rank_for_share(share, m, n))
            yield unit.row("fwsvd", f"weights of {name}, {_of(share)}", small, share=share, weight_error=error)

    for share in plan.controls:
        small = copy.deepcopy(dense)
        small.model = compressed_backbone(small, unit, sizes[share])
        yield from unit.both("modegpt", f"as large as {_of(share)}", small, share in plan.again, share=share)


def controls(unit: Unit, dense: PreTrainedModel) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Fisher weights that know less of the task, or nothing."""
    labels = [label for _, label in unit.train]
    random.Random(unit.seed).shuffle(labels)
    shuffled = [(text, label) for (text, _), label in zip(unit.train, labels, strict=True)]
    yield "shuffled labels", unit.fisher(dense, shuffled)
    yield "another task", unit.other.fitted[1]
    yield f"{FEW} examples", unit.fisher(dense, random.Random(unit.seed).sample(unit.train, FEW))


def compact(unit: Unit) -> Iterator[Row]:
    """A model that MoDeGPT made smaller on plain text, fine-tuned, then made smaller again."""
    plan = unit.plan
    dense = unit.classifier()
    dense.model = copy.deepcopy(compact_backbone(unit.model, unit.device, plan))
    unit.tune(dense)
    yield unit.row(DENSE, "compact by MoDeGPT", dense, removed=0.0)
    yield unit.row(DENSE, "compact by MoDeGPT", unit.tune(copy.deepcopy(dense)), again=True, removed=0.0)
    linears = block_linears(dense).values()
    share_of_blocks = sum(linear.weight.numel() for linear in linears) / count_parameters(dense)
    for method, weights in (("svd", None), ("fwsvd", unit.fisher(dense, unit.train))):
        factors = factors_of(dense, weights)
        for removed in plan.removed:
            ratio = removed / share_of_blocks
            small, error = factorized(dense, factors, lambda m, n, ratio=ratio: rank_for_ratio(ratio, m, n))
            about = {"removed": removed, "weight_error": error}
            yield from unit.both(method, f"{removed:.0%} smaller", small, removed in plan.removed_again, **about)


def direct(unit: Unit) -> Iterator[Row]:
    """The first layers only, as many as make no smaller a model than a third of the ranks, fine-tuned directly."""
    model, share = unit.classifier(), unit.plan.again[0]
    shapes = [linear.weight.shape for linear in block_linears(model).values()]
    excess = sum(m * n - rank_for_share(share, m, n) * (m + n) for m, n in shapes)  # what is to go
    home = next(module for module in model.modules() if isinstance(getattr(module, "layers", None), nn.ModuleList))
    goes = int(excess / count_parameters(home.layers[0]))
    home.layers = home.layers[: len(home.layers) - goes]
    model.config.num_hidden_layers = len(home.layers)
    about = {"layers": len(home.layers), "share": share}
    yield from unit.both("fewer layers", f"as large as {_of(share)}", unit.tune(model), True, **about)


PARTS: dict[str, Callable[[Unit], Iterator[Row]]] = {"ranks": ranks, "compact": compact, "direct": direct}


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear map inside the blocks."""
    named = model.named_modules()
    return {name: part for name, part in named if isinstance(part, nn.Linear) and ".layers." in name}


def factors_of(model: PreTrainedModel, rows: dict[str, Tensor] | None) -> Factors:
    """Ordered factors of each block linear, left (out, k) and right (k, in): FWSVD's, or plain SVD's without `rows`."""
    factors = {}
    for name, linear in block_linears(model).items():
        weight = linear.weight.detach().double()
        left = left_vectors(weight if rows is None else weighted_by_rows(weight, rows[name]))
        factors[name] = left, left.mT @ weight
    return factors


def left_vectors(weighted: Tensor) -> Tensor:
    """The left singular vectors U (out, k) of a matrix (out, in), the most important first.

    As those of `ordered_factors`, by the eigenvectors of A A^T, which a CPU finds as fast as a GPU does the singular
    vectors, so that several processes can share one GPU. Directions whose singular values are 1e-8 of the largest and
    less are in no order; no rank kept here reaches them.
    """
    tall = weighted.shape[0] > weighted.shape[1]
    base, rest = torch.linalg.qr(weighted) if tall else (None, weighted)
    vectors = torch.linalg.eigh((rest @ rest.mT).cpu()).eigenvectors.flip(1).to(weighted)
    return base @ vectors if tall else vectors


def factorized(
    dense: PreTrainedModel, factors: Factors, rank_of: Callable[[int, int], int]
) -> tuple[PreTrainedModel, float]:
    """A small copy, and how far its weights are from the dense ones: ||W - W'|| / ||W|| over all block linears."""
    small = copy.deepcopy(dense)
    found = factorize_(small, factors, rank_of)
    lost = whole = 0.0
    for name, linear in block_linears(dense).items():
        left, right = factors[name]
        weight = linear.weight.detach().double()
        whole += float(weight.square().sum())
        lost += float((weight - left[:, : found[name]] @ right[: found[name]]).square().sum())
    return small, (lost / whole) ** 0.5


def compressed_backbone(classifier: PreTrainedModel, unit: Unit, parameters: int) -> nn.Module:
    """The classifier's backbone, calibrated on the training texts and compressed by MoDeGPT to so many parameters."""
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(classifier.config)
    language_model.model = classifier.model
    language_model.get_output_embeddings().weight = classifier.get_input_embeddings().weight  # nothing looks at it
    blocks = sum(linear.weight.numel() for linear in block_linears(classifier).values())
    ratio = (count_parameters(classifier) - parameters) / blocks
    (inputs,) = classify.batches(unit.train, unit.tokenizer, len(unit.train), unit.device, MAX_TOKENS)
    del inputs["labels"]
    return modegpt_of(language_model, inputs, ratio=ratio, batch_size=32).model


def modegpt_of(model: PreTrainedModel, data: Any, **options: Any) -> PreTrainedModel:
    """The model compressed by MoDeGPT, with exact products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    small, _ = compress(model, data, **options)
    torch.set_float32_matmul_precision(precision)
    return small


@cache
def compact_backbone(name: str, device: torch.device, plan: Plan) -> nn.Module:
    """The model's backbone, compressed by MoDeGPT on Wikipedia passages."""
    model, tokenizer = load_model(name, dtype="float32", device=str(device))
    text = load_text("wiki-passages", "calibration")
    size = {"samples": plan.samples, "seq_len": plan.length}
    return modegpt_of(model, text, tokenizer=tokenizer, ratio=plan.compact, **size).model


def _of(share: float) -> str:
    return f"{share:.0%} of the ranks"


def fwsvd_task(
    models: Sequence[str],
    tasks: Sequence[str],
    parts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    device: str,
    folder: Path,
) -> None:
    """Measure the units that are not in `folder`/units yet, then bring those of each part together in results/."""
    where = find_device(device)
    if where.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    for part in parts:
        for seed in seeds:
            for model in models:
                units = [Unit(model, task, seed, where, plan) for task in tasks]
                for unit, unit.other in zip(units, units[1:] + units[:1], strict=True):
                    file = folder / "units" / f"fwsvd.{part}.{'.'.join(map(str, unit.names.values()))}.json"
                    if not file.exists():
                        measure(part, unit, file)
    gather(folder)


def measure(part: str, unit: Unit, file: Path) -> None:
    """All rows of one unit, in one file."""
    rows = []
    for row in PARTS[part](unit):
        rows.append(row)
        error = row.details.get("weight_error")
        note = f", weights off by {error:.1%}" if error is not None else ""
        out.print(f"{row.model}, {row.data}, seed {row.seed}: {row.method}, {row.variant}: {row.value:.1%}{note}")
    labels = [label for _, label in unit.test]
    settings = asdict(unit.plan) | {"train": len(unit.train), "test": len(unit.test), "max_tokens": MAX_TOKENS}
    settings |= {"majority": max(map(labels.count, labels)) / len(labels), "batch_size": classify.BATCH}
    save(Results.now(f"fwsvd.{part}", TITLES[part], settings, rows, unit.device, command_line()), file)


TITLES = {
    "ranks": "FWSVD against SVD on tasks",
    "compact": "FWSVD on a model that MoDeGPT has made smaller",
    "direct": "A model with fewer layers, fine-tuned directly",
}


def gather(folder: Path) -> None:
    """One results file of each part, from those of its units; they must come from one machine."""
    for part in PARTS:
        units = [load(file) for file in sorted((folder / "units").glob(f"fwsvd.{part}.*.json"))]
        if not units:
            continue
        rows = [row for unit in units for row in unit.rows]
        settings = {}  # of each model and task
        for unit in units:
            settings.setdefault(unit.rows[0].model, {})[unit.rows[0].data] = unit.settings
        file = save(replace(units[0], rows=rows, settings=settings), folder / "results" / f"fwsvd.{part}.json")
        lines = summary(load(file))
        _print(lines)
        out.print(f"written: {file}")
        if part == "ranks":
            keep(accuracy_on_tasks(lines), folder / f"{file.stem}.png")


def _print(lines: list[dict[str, Any]]) -> None:
    table = Table("model", "task", "method", "variant", "parameters", "accuracy", "fine-tuned again", box=None)
    for line in lines:
        scores = [line.get(when) for when in ("before", "after")]
        cells = [f"{score['mean']:.1%} ± {score['spread']:.1%}" if score else "" for score in scores]
        about = [line[name] for name in ("model", "data", "method", "variant")]
        table.add_row(*about, f"{line['parameters'] / 1e6:.1f} M", *cells)
    show_table(table, 140)


def summary(results: Results) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds; all seeds share the test set, whose own error comes on top.

    A line for each model, task, method and variant, with `before` and, where there was one, `after` the second
    fine-tuning.
    """
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in results.rows:
        variant = row.variant.removesuffix(", fine-tuned again")
        key = (row.model, row.data, row.method, variant)
        line = lines.setdefault(key, {"model": row.model, "data": row.data, "method": row.method, "variant": variant})
        line |= {name: value for name, value in row.details.items() if name != "again"}
        line.setdefault("after" if row.details["again"] else "before", []).append(row.value)
    for line in lines.values():
        for when in ("before", "after"):
            if values := line.get(when):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                line[when] = {"mean": statistics.mean(values), "spread": spread, "seeds": len(values)}
    return [*lines.values()]
