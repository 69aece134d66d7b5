"""FWSVD as its paper does it: `modegpt study fwsvd-task`.

Fine-tune a model on a classification task, factorise every linear map of its blocks at a share of the full ranks,
measure the accuracy, fine-tune once more, measure again; FWSVD beside plain SVD, for several shares and seeds. The
paper (Hsu et al., ICLR 2022, arXiv 2207.00112) keeps 33 % of BERT's ranks on GLUE and trains with Adam, 3 epochs at
2e-5 in batches of 32. Here the training set is a few hundred examples, so the learning rate is higher, and gradients
are clipped to norm 1.
"""

import copy
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modegpt.console import command_line, out, show_table
from modegpt.methods.fwsvd import fisher_rows, fisher_weighted_factors
from modegpt.methods.low_rank import factorize_, ordered_factors, rank_for_share
from modegpt.report import count_parameters
from modegpt.sources import auto_dtype, find_device, resolve_model
from modegpt.sources.hub import clear_errors, quiet_transformers
from modegpt.sources.labelled import Example, load_labelled
from modegpt.study.figures import accuracy_against_share
from modegpt.study.results import DENSE, Results, Row, Unfinished, load, save
from modegpt.style import keep

METHODS = ("svd", "fwsvd")
BATCH, MAX_TOKENS = 32, 256


def batches(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Right-padded inputs (size, tokens) with labels (size,), `size` examples at a time, in the order given."""
    for start in range(0, len(examples), size):
        texts, labels = zip(*examples[start : start + size], strict=True)
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_token_type_ids": False}
        inputs = tokenizer(list(texts), return_tensors="pt", **options) | {"labels": torch.tensor(labels)}
        yield {name: tensor.to(device) for name, tensor in inputs.items()}


def fine_tune(
    model: PreTrainedModel,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Adam with a linear decay to zero, gradients clipped to norm 1, in place. Texts of like length share a batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = epochs * math.ceil(len(examples) / BATCH)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    chance = random.Random(seed)
    torch.manual_seed(seed)  # of dropout
    fast = auto_dtype(model.device) is torch.bfloat16
    model.train().requires_grad_(True)
    for _ in range(epochs):
        order = sorted(chance.sample(examples, len(examples)), key=lambda example: len(example[0]) // 20)
        inputs_of_epoch = list(batches(order, tokenizer, BATCH, model.device))
        for inputs in chance.sample(inputs_of_epoch, len(inputs_of_epoch)):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
                loss = model(**inputs).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()


@torch.no_grad()
def accuracy(model: PreTrainedModel, examples: list[Example], tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the examples whose label has the largest logit."""
    right = 0
    for inputs in batches(examples, tokenizer, 64, model.device):
        labels = inputs.pop("labels")
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(examples)


def factors_of(
    model: PreTrainedModel, method: str, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Ordered factors, left (out, k) and right (k, in), of every linear map inside the blocks.

    FWSVD looks at the loss on the training examples.
    """
    weights = {name: linear.weight.detach() for name, linear in _block_linears(model).items()}
    if method == "svd":
        return {name: ordered_factors(weight, weight.double()) for name, weight in weights.items()}
    rows = fisher_rows(model, weights, batches(examples, tokenizer, 1, model.device))
    return {name: fisher_weighted_factors(weight, rows[name]) for name, weight in weights.items()}


def _block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    named = model.named_modules()
    return {name: part for name, part in named if isinstance(part, nn.Linear) and ".layers." in name}


def measure_seed(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Example],
    test: list[Example],
    shares: Sequence[float],
    again: Sequence[float],
    training: dict[str, Any],
    device: str,
    seed: int,
    where: dict[str, str],
) -> Iterator[Row]:
    """Accuracies of one seed, as it is and, where `again` in the details says so, after (one more) fine-tuning.

    The dense model, fine-tuned once, then twice, for a fair comparison; each method at each share. `where` names
    model and data.
    """

    def row(method: str, share: float, model: PreTrainedModel, again: bool = False) -> Row:
        details = {"share": share, "again": again, "parameters": count_parameters(model)}
        variant = f"{share:.0%} of the ranks{', fine-tuned again' if again else ''}"
        value = accuracy(model, test, tokenizer)
        same = {"what": "accuracy", "unit": "share", "seed": seed, "details": details} | where
        return Row(value=value, method=method, variant=variant, **same)

    torch.manual_seed(seed)  # of the classification head
    with quiet_transformers():
        dense = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len({label for _, label in train}), dtype=torch.float32
        ).to(device)
    dense.config.pad_token_id = tokenizer.pad_token_id
    for share in shares:  # a share that saves nothing is refused before any work
        for linear in _block_linears(dense).values():
            rank_for_share(share, linear.out_features, linear.in_features)
    fine_tune(dense, train, tokenizer, seed=seed, **training)
    yield row(DENSE, 1.0, dense)
    twice = copy.deepcopy(dense)
    fine_tune(twice, train, tokenizer, seed=seed, **training)
    yield row(DENSE, 1.0, twice, again=True)
    for method in METHODS:
        factors = factors_of(dense, method, train, tokenizer)
        for share in shares:
            small = copy.deepcopy(dense)
            factorize_(small, factors, lambda m, n, share=share: rank_for_share(share, m, n))
            yield row(method, share, small)
            if share in again:
                fine_tune(small, train, tokenizer, seed=seed, **training)
                yield row(method, share, small, again=True)


def fwsvd_task(
    model: str,
    task: str,
    shares: Sequence[float],
    again: Sequence[float],
    *,
    seeds: int,
    epochs: int,
    learning_rate: float,
    device: str,
    folder: Path,
) -> None:
    """FWSVD against SVD on a classification task, before and after a second fine-tuning (for the shares in `again`).

    The picture goes to `folder`, the numbers to results/ in it.
    """
    where, path = find_device(device), resolve_model(model)
    train, test = load_labelled(task)
    with clear_errors(model):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    training = {"epochs": epochs, "learning_rate": learning_rate}
    labels = [label for _, label in test]
    settings = {"model": Path(model).name, "task": Path(task).name, "train": len(train), "test": len(test)}
    settings |= {"majority": max(map(labels.count, labels)) / len(labels)} | training
    settings |= {"batch_size": BATCH, "max_tokens": MAX_TOKENS, "shares": list(shares), "again": list(again)}
    file = folder / "results" / f"fwsvd-{Path(task).stem}-{Path(model).name}.json"
    unfinished = Unfinished(file, settings, where)
    names = {"model": settings["model"], "data": settings["task"]}
    for seed in range(seeds):
        if seed in {row.seed for row in unfinished.rows}:
            continue
        rows = []  # kept once the seed is done
        for row in measure_seed(path, tokenizer, train, test, shares, again, training, str(where), seed, names):
            rows.append(row)
            out.print(f"seed {seed}, {row.method}, {row.variant}: {row.value:.1%}")
        unfinished.add(*rows)
    results = Results.now("fwsvd", "FWSVD against SVD on a task", settings, unfinished.rows, where, command_line())
    file = save(results, file)
    lines = summary(load(file))
    picture = folder / f"{file.stem}.png"
    keep(accuracy_against_share(settings, lines), picture)
    unfinished.remove()
    _print(lines)
    out.print(f"majority class {settings['majority']:.1%}; written: {picture}, {file}")


def _print(lines: list[dict[str, Any]]) -> None:
    table = Table("method", "share of ranks", "parameters", "accuracy", "fine-tuned again", box=None)
    for line in lines:
        scores = [line.get(when) for when in ("before", "after")]
        cells = [f"{score['mean']:.1%} ± {score['spread']:.1%}" if score else "" for score in scores]
        table.add_row(line["method"], f"{line['share']:.0%}", f"{line['parameters'] / 1e6:.1f} M", *cells)
    show_table(table, 80)


def summary(results: Results) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds; all seeds share the test set, whose own error comes on top.

    A line for each method and share, with `before` and, where there was one, `after` the second fine-tuning.
    """
    lines = []
    for method, share in dict.fromkeys((row.method, row.details["share"]) for row in results.rows):
        mine = [row for row in results.rows if (row.method, row.details["share"]) == (method, share)]
        line = {"method": method, "share": share, "parameters": mine[0].details["parameters"]}
        for when in ("before", "after"):
            values = [row.value for row in mine if row.details["again"] == (when == "after")]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                line[when] = {"mean": statistics.mean(values), "spread": spread}
        lines.append(line)
    return lines
