"""What FWSVD's lead over plain SVD depends on: one choice at a time, the rest as in the main study."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modegpt import classify
from modegpt.calibrate import real_rows, tapped
from modegpt.decompose import damped_cholesky
from modegpt.methods.fwsvd import fisher_rows
from modegpt.sources.labelled import Example
from modegpt.study.fwsvd_unit import (
    MAX_TOKENS,
    METHODS,
    Factors,
    Unit,
    block_linears,
    factorized,
    factors_of,
    of_ranks,
    with_labels,
)
from modegpt.study.results import DENSE, Row

DAMPINGS = (0.01, 0.1, 1.0)  # times the mean of a matrix's row weights, added to each
LAYERS: dict[str, Callable[[str, int], bool]] = {  # name of a linear, number of layers -> is it compressed
    "attention only": lambda name, _: ".self_attn." in name,
    "MLP only": lambda name, _: ".self_attn." not in name,
    "without the first and the last layer": lambda name, count: 0 < _layer(name) < count - 1,
}
FIRST_TRAININGS = {  # of the learning rate and of the epochs, so many times
    "a quarter of the learning rate": (0.25, 1),
    "four times the learning rate": (4.0, 1),
    "one epoch": (1.0, 1 / 3),
    "ten epochs": (1.0, 10 / 3),
}


def vary(unit: Unit) -> Iterator[Row]:
    """SVD and FWSVD at all shares of the ranks, also where that saves nothing; each choice at those tuned again."""
    plan = unit.plan
    dense, fisher = unit.fitted
    yield unit.row(DENSE, "whole", dense, share=1.0)
    yield unit.row(DENSE, "whole", unit.tune(copy.deepcopy(dense)), again=True, share=1.0)

    factors = {"svd": factors_of(dense, None), "fwsvd": factors_of(dense, fisher)}
    for method in METHODS:
        for share in plan.shares:
            small, error = factorized(dense, factors[method], _rank(share))
            again = share in plan.again
            yield from unit.both(method, of_ranks(share), small, again, share=share, weight_error=error)

    for name, chosen in LAYERS.items():
        for method in METHODS:
            count = dense.config.num_hidden_layers
            some = {linear: pair for linear, pair in factors[method].items() if chosen(linear, count)}
            yield from _rows(unit, method, name, dense, some)

    for name, weights in estimates(unit, dense, fisher):
        yield from _rows(unit, "fwsvd", name, dense, factors_of(dense, weights))
    grams = input_grams(unit, dense)
    loudness = {name: gram.diagonal() for name, gram in grams.items()}
    yield from _rows(unit, "fwsvd", "weights of the inputs alone", dense, factors_of(dense, loudness))
    roots = {name: damped_cholesky(gram)[0] for name, gram in grams.items()}
    yield from _rows(unit, "svd-llm", "whitened by the inputs", dense, factors_of(dense, roots))

    for name, (rate, epochs) in FIRST_TRAININGS.items():
        changes = {"learning_rate": rate * plan.learning_rate, "epochs": max(1, round(epochs * plan.epochs))}
        other = unit.tune(unit.classifier(), **changes)
        yield unit.row(DENSE, f"first fine-tuning: {name}", other, share=1.0, **changes)
        for method, weights in (("svd", None), ("fwsvd", unit.fisher(other, unit.train))):
            yield from _rows(unit, method, f"first fine-tuning: {name}", other, factors_of(other, weights))


def estimates(unit: Unit, dense: PreTrainedModel, fisher: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Fisher weights with other labels, squared a batch at a time, and damped."""
    yield "weights of shuffled labels", unit.fisher(dense, unit.shuffled())
    yield "weights of labels drawn from the model", unit.fisher(dense, drawn(unit, dense))
    mixed = classify.batches(unit.train, unit.tokenizer, classify.BATCH, unit.device, MAX_TOKENS)
    yield "weights of batches squared", fisher_rows(dense, block_linears(dense), mixed)
    for damping in DAMPINGS:
        yield f"weights damped by {damping:g}", {name: row + damping * row.mean() for name, row in fisher.items()}


@torch.no_grad()
def drawn(unit: Unit, model: PreTrainedModel) -> list[Example]:
    """The training texts, each with a label drawn as the model thinks it likely: what the Fisher information means."""
    chance = torch.Generator().manual_seed(unit.seed)
    labels = []
    for inputs in unit.batches(unit.train):
        likely = model(**inputs).logits.softmax(-1).cpu()
        labels += likely.multinomial(1, generator=chance)[:, 0].tolist()
    return with_labels(classify.by_length(unit.train), labels)


@torch.no_grad()
def input_grams(unit: Unit, model: PreTrainedModel) -> dict[str, Tensor]:
    """E[x x^T] of every block linear's inputs (in, in), float64, over the training texts without padding."""
    linears = block_linears(model)
    sums = {
        name: torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64, device=unit.device)
        for name, linear in linears.items()
    }
    tokens = 0
    with tapped({name: (linear, "input") for name, linear in linears.items()}) as seen:
        for inputs in unit.batches(unit.train):
            model(**inputs)
            real = inputs["attention_mask"].bool().flatten()
            tokens += int(real.sum())
            for name, total in sums.items():
                x = real_rows(seen[name], real).double()
                total += x.mT @ x
    return {name: total / tokens for name, total in sums.items()}


def _rows(unit: Unit, method: str, name: str, model: PreTrainedModel, factors: Factors) -> Iterator[Row]:
    for share in unit.plan.again:
        small, error = factorized(model, factors, _rank(share))
        yield unit.row(method, f"{name}, {of_ranks(share)}", small, share=share, weight_error=error)


def _rank(share: float) -> Callable[[int, int], int]:
    return lambda m, n: max(1, int(share * min(m, n) + 1e-9))


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])
