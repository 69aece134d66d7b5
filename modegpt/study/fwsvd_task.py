"""FWSVD's own claims, on tasks with labels: `modegpt study fwsvd-task`.

The paper (Hsu et al., ICLR 2022, arXiv 2207.00112) fine-tunes BERT on a task, factorises every linear map of its
blocks, keeps 33 % of the ranks, and fine-tunes again: Adam, 3 epochs at 2e-5 in batches of 32. Four parts do the same:

ranks: FWSVD beside plain SVD at several shares of the ranks, before and after the second fine-tuning; with Fisher
    weights of shuffled labels, of another task and of few examples as controls; MoDeGPT at the same sizes.
compact: a model that MoDeGPT has already made smaller, fine-tuned, then a further 9 to 30 % smaller by both.
direct: the same model with its first layers only, as large as the compressed one, fine-tuned directly.
vary: the Fisher weights, the layers, the first fine-tuning, one choice at a time (`fwsvd_vary`).

A unit is one part for one model, task and seed, in a file of its own, so several processes can share the work: the same
command, started several times. What is there is not measured again; the files of all units together make
`fwsvd.PART.json`.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from modegpt import classify
from modegpt.console import command_line, out, show_table
from modegpt.errors import ModegptError
from modegpt.methods.low_rank import rank_for_ratio, rank_for_share
from modegpt.pipeline import compress
from modegpt.report import count_parameters
from modegpt.sources import find_device, load_model, load_text
from modegpt.study.figures import accuracy_on_tasks
from modegpt.study.fwsvd_unit import MAX_TOKENS, Plan, Unit, block_linears, factorized, factors_of, of_ranks
from modegpt.study.fwsvd_vary import vary
from modegpt.study.results import DENSE, Results, Row, load, save
from modegpt.style import keep

FEW = 16  # examples, for the control


def ranks(unit: Unit) -> Iterator[Row]:
    """SVD, FWSVD, its controls and MoDeGPT, for shares of the full ranks."""
    plan = unit.plan
    for linear in block_linears(unit.classifier()).values():
        for share in plan.shares:  # one that saves nothing is refused before any work
            rank_for_share(share, *linear.weight.shape)
    dense, fisher = unit.fitted
    yield unit.row(DENSE, "whole", dense, share=1.0)
    yield unit.row(DENSE, "whole", unit.tune(copy.deepcopy(dense)), again=True, share=1.0)

    sizes = {}
    for method, weights in (("svd", None), ("fwsvd", fisher)):
        factors = factors_of(dense, weights)
        for share in plan.shares:
            small, error = factorized(dense, factors, lambda m, n, share=share: rank_for_share(share, m, n))
            sizes[share] = count_parameters(small)
            yield from unit.both(method, of_ranks(share), small, share in plan.again, share=share, weight_error=error)

    for name, weights in controls(unit, dense):
        factors = factors_of(dense, weights)
        for share in plan.controls:
            small, error = factorized(dense, factors, lambda m, n, share=share: rank_for_share(share, m, n))
            yield unit.row("fwsvd", f"weights of {name}, {of_ranks(share)}", small, share=share, weight_error=error)

    for share in plan.controls:
        small = copy.deepcopy(dense)
        small.model = compressed_backbone(small, unit, sizes[share])
        yield from unit.both("modegpt", f"as large as {of_ranks(share)}", small, share in plan.again, share=share)


def controls(unit: Unit, dense: PreTrainedModel) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Fisher weights that know less of the task, or nothing."""
    yield "shuffled labels", unit.fisher(dense, unit.shuffled())
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
    yield from unit.both("fewer layers", f"as large as {of_ranks(share)}", unit.tune(model), True, **about)


PARTS: dict[str, Callable[[Unit], Iterator[Row]]] = {"ranks": ranks, "compact": compact, "direct": direct, "vary": vary}


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


def fwsvd_task(
    models: Sequence[str],
    tasks: Sequence[str],
    parts: Sequence[str],
    seeds: Sequence[int],
    plan: Plan,
    *,
    device: str,
    folder: Path,
    known: Path | None = None,
) -> None:
    """Measure the units that are not in `folder`/units yet, then bring those of each part together in results/.

    Units of the results files in `known` count as measured if they have the settings of this run. They go into results/
    too, and so do those of models and tasks that this run does not ask for.

    Raises:
        ModegptError: a unit is there with other settings.
    """
    where = find_device(device)
    if where.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    for part in parts:
        measured = {unit_file(folder, part, vars(unit.rows[0])): unit for unit in known_units(part, known)}
        for seed in seeds:
            for model in models:
                units = [Unit(model, task, seed, where, plan) for task in tasks]
                for unit, unit.other in zip(units, units[1:] + units[:1], strict=True):
                    file = unit_file(folder, part, unit.names)
                    if file in measured and measured[file].settings == unit.settings:
                        continue
                    file.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(file.with_suffix(".lock"))
                    with suppress(Timeout), lock.acquire(timeout=0):  # else another process is at it
                        if not file.exists():
                            measure(part, unit, file)
                        elif load(file).settings != unit.settings:
                            raise ModegptError(f"{file} was measured with other settings: give another --out")
    gather(folder, known)


def unit_file(folder: Path, part: str, names: Mapping[str, Any]) -> Path:
    """Where the rows of one unit are."""
    return folder / "units" / f"fwsvd.{part}.{names['model']}.{names['data']}.{names['seed']}.json"


def units_of(results: Results) -> Iterator[Results]:
    """The units that a results file of a part was made of."""
    rows: dict[tuple[str, str, int], list[Row]] = {}
    for row in results.rows:
        rows.setdefault((row.model, row.data, row.seed), []).append(row)
    for (model, data, _), mine in rows.items():
        yield replace(results, rows=mine, settings=results.settings[model][data])


def known_units(part: str, known: Path | None) -> list[Results]:
    """Those of all results files of a part in a folder."""
    files = sorted(known.glob(f"fwsvd.{part}.*json")) if known else []
    return [unit for file in files for unit in units_of(load(file))]


def task_of(unit: Results) -> tuple[str, str]:
    """Its model and task."""
    return unit.rows[0].model, unit.rows[0].data


def measure(part: str, unit: Unit, file: Path) -> None:
    """All rows of one unit, in one file; `seconds` are those since the row before, of this process."""
    rows, before = [], time.perf_counter()
    for row in PARTS[part](unit):
        now = time.perf_counter()
        rows.append(replace(row, details=row.details | {"seconds": round(now - before, 2)}))
        before = now
        error = row.details.get("weight_error")
        note = f", weights off by {error:.1%}" if error is not None else ""
        out.print(f"{row.model}, {row.data}, seed {row.seed}: {row.method}, {row.variant}: {row.value:.1%}{note}")
    save(Results.now(f"fwsvd.{part}", TITLES[part], unit.settings, rows, unit.device, command_line()), file)


TITLES = {
    "ranks": "FWSVD against SVD on tasks",
    "compact": "FWSVD on a model that MoDeGPT has made smaller",
    "direct": "A model with fewer layers, fine-tuned directly",
    "vary": "What FWSVD's lead over SVD depends on",
}


def gather(folder: Path, known: Path | None = None) -> None:
    """One results file of each part, from those of its units; they must come from one machine."""
    for part in PARTS:
        units = [load(file) for file in sorted((folder / "units").glob(f"fwsvd.{part}.*.json"))]
        if not units:
            continue
        here = {task_of(unit): unit.settings for unit in units}
        others = {unit_file(folder, part, vars(unit.rows[0])): unit for unit in known_units(part, known)}
        units += [
            unit
            for file, unit in others.items()
            if not file.exists() and here.get(task_of(unit), unit.settings) == unit.settings
        ]
        units.sort(key=lambda unit: (task_of(unit), unit.rows[0].seed))
        rows = [row for unit in units for row in unit.rows]
        settings = {}  # of each model and task
        for unit in units:
            model, task = task_of(unit)
            settings.setdefault(model, {})[task] = unit.settings
        command = " && ".join(dict.fromkeys(one for unit in units for one in unit.command.split(" && ")))
        whole = replace(units[0], rows=rows, settings=settings, command=command)
        file = save(whole, folder / "results" / f"fwsvd.{part}.json")
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
        line |= {name: value for name, value in row.details.items() if name not in ("again", "seconds")}
        line.setdefault("after" if row.details["again"] else "before", []).append(row.value)
    for line in lines.values():
        for when in ("before", "after"):
            if values := line.get(when):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                line[when] = {"mean": statistics.mean(values), "spread": spread, "seeds": len(values)}
    return [*lines.values()]
