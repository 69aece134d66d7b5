"""FWSVD as its paper does it: `python -m modegpt.study.fwsvd_task`.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modegpt.console import numbers, out, run_alone
from modegpt.errors import ModegptError
from modegpt.methods.fwsvd import fisher_rows, fisher_weighted_factors
from modegpt.methods.low_rank import factorize_, ordered_factors, rank_for_share
from modegpt.report import count_parameters
from modegpt.sources import auto_dtype, resolve_model
from modegpt.sources.hub import clear_errors, quiet_transformers
from modegpt.sources.labelled import Example, load_labelled
from modegpt.study.results import DENSE, Results, Row, Unfinished, load, module_command, save

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
    shares: list[float],
    again: list[float],
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
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")] = "opt-mini",
    task: Annotated[str, typer.Option(help="sst2, mrpc, rte, or a .jsonl file with text and label.")] = "sst2",
    shares: Annotated[str, typer.Option(help="Shares of the full rank to keep.")] = "0.1,0.2,0.33,0.4,0.45,0.49",
    again: Annotated[str, typer.Option(help="Those of them that are fine-tuned a second time.")] = "0.33",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...: head, order of examples.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each fine-tuning.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at the start; it decays to zero.")] = 2e-4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Gets the picture, and results/ the numbers.")] = Path(
        "figures"
    ),
) -> None:
    """FWSVD against SVD on a classification task, before and after a second fine-tuning."""
    from modegpt.sources.models import find_device
    from modegpt.study.figures import accuracy_against_share
    from modegpt.style import keep

    wanted, refit = numbers("--shares", shares, "0.2,0.33"), numbers("--again", again, "0.33")
    if not set(refit) <= set(wanted):
        raise ModegptError(f"--again {again}: these shares must be among --shares {shares}")
    where = find_device(device)
    path = resolve_model(model)
    train, test = load_labelled(task)
    with clear_errors(model):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    training = {"epochs": epochs, "learning_rate": learning_rate}
    labels = [label for _, label in test]
    training_facts = training | {"batch_size": BATCH, "max_tokens": MAX_TOKENS, "shares": wanted, "again": refit}
    slug = f"fwsvd-{Path(task).stem}-{Path(model).name}"
    settings = {"model": Path(model).name, "task": Path(task).name, "train": len(train), "test": len(test)}
    settings |= {"majority": max(map(labels.count, labels)) / len(labels)} | training_facts
    file = folder / "results" / f"{slug}.json"
    unfinished = Unfinished(file, settings, where)
    names = {"model": settings["model"], "data": settings["task"]}
    for seed in range(seeds):
        if seed in {row.seed for row in unfinished.rows}:
            continue
        rows = []  # kept once the seed is done
        for row in measure_seed(path, tokenizer, train, test, wanted, refit, training, str(where), seed, names):
            rows.append(row)
            out.print(f"seed {seed}, {row.method}, {row.variant}: {row.value:.1%}")
        unfinished.add(*rows)
    command = module_command("modegpt.study.fwsvd_task")
    results = Results.now("fwsvd", "FWSVD against SVD on a task", settings, unfinished.rows, where, command)
    file = save(results, file)
    lines = summary(load(file))
    picture = folder / f"{file.stem}.png"
    keep(accuracy_against_share(settings, lines), picture)
    unfinished.remove()
    table = Table("method", "share of ranks", "parameters", "accuracy", "fine-tuned again", box=None)
    for line in lines:
        scores = [line.get(when) for when in ("before", "after")]
        cells = [f"{score['mean']:.1%} ± {score['spread']:.1%}" if score else "" for score in scores]
        table.add_row(line["method"], f"{line['share']:.0%}", f"{line['parameters'] / 1e6:.1f} M", *cells)
    out.print(table)
    out.print(f"majority class {settings['majority']:.1%}; written: {picture}, {file}")


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


def main() -> None:
    """Run as `python -m modegpt.study.fwsvd_task`."""
    run_alone(fwsvd_task)


if __name__ == "__main__":
    main()
