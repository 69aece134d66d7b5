"""What the parts of FWSVD's study share: a model on a task, its fine-tuning, its Fisher weights, its factors."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt import classify
from modegpt.files import to_json
from modegpt.methods.fwsvd import batched_fisher_rows, weighted_by_rows
from modegpt.methods.low_rank import factorize_
from modegpt.report import count_parameters
from modegpt.sources import resolve_model
from modegpt.sources.labelled import Example, load_labelled
from modegpt.study.results import Row

METHODS = ("svd", "fwsvd")
MAX_TOKENS = 96
_labelled = cache(load_labelled)  # for all seeds

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
            for part, most in zip(_labelled(task), (plan.train, plan.test), strict=True)
        )
        self.names = {"model": Path(model).name, "data": Path(task).stem, "seed": seed}
        self.tokenizer = classify.load_tokenizer(resolve_model(model))
        self.other = self

    @property
    def settings(self) -> dict[str, Any]:
        """The plan and what came of it, as a results file holds it."""
        labels = [label for _, label in self.test]
        found = asdict(self.plan) | {"train": len(self.train), "test": len(self.test), "max_tokens": MAX_TOKENS}
        found |= {"majority": max(map(labels.count, labels)) / len(labels), "batch_size": classify.BATCH}
        return json.loads(to_json(found))

    def classifier(self) -> PreTrainedModel:
        """The model with a head for the task's labels, not yet trained."""
        labels = len({label for _, label in self.train})
        return classify.load_classifier(resolve_model(self.model), self.tokenizer, labels, self.seed).to(self.device)

    @cached_property
    def fitted(self) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """The fine-tuned model, and the Fisher information of its rows on the training examples."""
        model = self.tune(self.classifier())
        return model, self.fisher(model, self.train)

    def tune(self, model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
        """Three epochs, in place. `changes` are to the options of `classify.fine_tune`."""
        training = {"epochs": self.plan.epochs, "learning_rate": self.plan.learning_rate, "max_tokens": MAX_TOKENS}
        classify.fine_tune(model, self.train, self.tokenizer, seed=self.seed, **training | changes)
        return model

    def batches(self, examples: list[Example]) -> Iterator[dict[str, Tensor]]:
        """Inputs with labels, texts of like length together."""
        return classify.batches(classify.by_length(examples), self.tokenizer, classify.BATCH, self.device, MAX_TOKENS)

    def shuffled(self) -> list[Example]:
        """The training texts with one another's labels."""
        labels = [label for _, label in self.train]
        random.Random(self.seed).shuffle(labels)
        return with_labels(self.train, labels)

    def fisher(self, model: PreTrainedModel, examples: list[Example]) -> dict[str, Tensor]:
        """The Fisher information of every block linear's rows, summed over these examples."""
        return batched_fisher_rows(model, block_linears(model), self.batches(examples))

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


def with_labels(examples: list[Example], labels: list[int]) -> list[Example]:
    """The same texts with other labels."""
    return [(text, label) for (text, _), label in zip(examples, labels, strict=True)]


def of_ranks(share: float) -> str:
    """How the variant of a row names a share of the full ranks."""
    return f"{share:.0%} of the ranks"


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear map inside the blocks."""
    named = model.named_modules()
    return {name: part for name, part in named if isinstance(part, nn.Linear) and ".layers." in name}


def factors_of(model: PreTrainedModel, weights: dict[str, Tensor] | None) -> Factors:
    """Ordered factors of each block linear, left (out, k) and right (k, in).

    FWSVD's if `weights` are those of its rows, (in,); plain SVD's without any; SVD-LLM's if they are roots R, (in, in),
    of the Gram matrices of its inputs, R R^T = E[x x^T].
    """

    def factors(named: tuple[str, nn.Linear]) -> tuple[Tensor, Tensor]:
        name, linear = named
        weight = linear.weight.detach().double()
        if weights is None:
            left = left_vectors(weight)
        elif weights[name].ndim == 2:
            left = left_vectors(weight @ weights[name])
        else:
            left = left_vectors(weighted_by_rows(weight, weights[name]))
        return left, left.mT @ weight

    linears = block_linears(model)
    torch.linalg.qr(torch.ones(1, 1, device=model.device))  # loads CUDA's solvers, before threads do so at once
    with ThreadPoolExecutor() as pool:  # LAPACK gains little from threads inside of one small matrix
        return dict(zip(linears, pool.map(factors, linears.items()), strict=True))


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
    """A small copy, and how far its weights are from the dense ones: ||W - W'|| / ||W|| over all block linears.

    Linears without factors stay as they are.
    """
    small = copy.deepcopy(dense)
    found = factorize_(small, factors, rank_of)
    lost = whole = 0.0
    for name, linear in block_linears(dense).items():
        weight = linear.weight.detach().double()
        whole += float(weight.square().sum())
        if name in factors:
            left, right = factors[name]
            lost += float((weight - left[:, : found[name]] @ right[: found[name]]).square().sum())
    return small, (lost / whole) ** 0.5
