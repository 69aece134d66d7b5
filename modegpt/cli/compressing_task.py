"""The work of `modegpt compress --task`: a classifier and its labelled texts by name, and in the end a folder."""

from pathlib import Path
from typing import Any

from modegpt import classify
from modegpt.checkpoint.card import source_of
from modegpt.checkpoint.folder import save_checkpoint
from modegpt.cli.facts import interactive, provenance, without_places
from modegpt.console import out
from modegpt.machine import Stopwatch, dtype_name, peak_memory_bytes
from modegpt.methods import fwsvd
from modegpt.report import Report
from modegpt.sources import find_device, resolve_model
from modegpt.sources.labelled import read_labelled


def compress_task(
    model: str, folder: Path, ratio: float, task: str, device: str, overwrite: bool
) -> tuple[Report, dict[str, Any]]:
    """Compress a classifier by FWSVD and save it, in float32. Returns the report, and the facts for a results file.

    Raises:
        ModegptError: a task that cannot be read, a model without a head, and what `fwsvd.measure_task` raises.
    """
    clock = Stopwatch()
    with clock("total"):
        examples = read_labelled(task)
        with clock("load"):
            where, path = find_device(device), resolve_model(model)
            tokenizer = classify.load_tokenizer(path)
            dense = classify.load_trained(path).to(where)
        facts = source_of(model) | {"model": model, "task": Path(task).name, "examples": len(examples)}
        facts |= {"calibration": Path(task).name, "seed": None, "dtype": dtype_name(dense.dtype)} | provenance(where)
        out.print(f"{model} on {where}: {len(examples):,} texts of {task}, {dense.config.num_labels} labels")
        measured = fwsvd.measure_task(dense, examples, tokenizer, progress=interactive())
        small, report = fwsvd.compress(dense, measured, ratio)
        with clock("save"):
            save_checkpoint(folder, small, tokenizer, without_places(facts | report.to_dict()), overwrite)
    report.seconds |= clock.seconds
    report.peak_memory_bytes = peak_memory_bytes()
    return report, facts | report.to_dict()
