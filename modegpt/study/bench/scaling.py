"""One and several GPUs in one run: the same compression on more and more ranks, and whether they agree."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from modegpt import parallel
from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.study.bench.compress import compression_rows, family_layers, kept_checksum, time_compression
from modegpt.study.results import Row

MINUTES = 9


def launch(job: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Run `work` on so many processes of this host by torchrun; returns what rank 0 found.

    Raises:
        ModegptError: it failed, with the last line of what it said, or took longer than nine minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "modegpt.study.bench.scaling", json.dumps(job), str(result)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as torchrun:
            try:
                _, said = torchrun.communicate(timeout=60 * MINUTES)
            except subprocess.TimeoutExpired as error:
                torchrun.terminate()  # it ends its workers
                torchrun.communicate()
                raise ModegptError(f"{ranks} ranks were not done after {MINUTES} minutes") from error
        if torchrun.returncode:
            reasons = re.findall(r"^modegpt: .*|^[\w.]*(?:Error|Exception): .*", said, re.MULTILINE)
            raise ModegptError(f"{ranks} ranks failed: {reasons[0] if reasons else said[-300:]}")
        return json.loads(result.read_text())


def scaling_rows(found: dict[int, dict[str, Any]]) -> list[Row]:
    """The rows of one shape: seconds and memory by number of ranks, speed-up and agreement against the fewest."""
    rows, fewest = [], min(found)
    for ranks, run in found.items():
        rows += compression_rows(run, f"{ranks} ranks")
        if ranks == fewest:
            continue
        first = found[fewest]
        fields = {"model": run["shape"], "method": "modegpt", "ratio": run["options"]["ratio"], "seed": 0}
        fields |= {"data": "random tokens", "variant": f"{ranks} ranks against {fewest}"}
        for step in ("total", "calibrate", "decompose"):
            value = first["seconds"][step] / run["seconds"][step]
            rows.append(Row(what=f"speed-up: {step}", value=value, unit="", **fields))
        rows.append(_agreement(run, first, fields))
    return rows


def quality_rows(found: dict[int, dict[str, Any]], model: str, ratio: float) -> list[Row]:
    """Perplexity of a real model compressed on each number of ranks, and agreement with the fewest."""
    rows, fewest = [], min(found)
    fields = {"model": model, "method": "modegpt", "ratio": ratio, "data": "wiki-passages", "seed": 0}
    for ranks, run in found.items():
        measured = {"value": run["perplexity"], "spread": run["standard_error"], "spread_over": "windows"}
        rows.append(Row(what="perplexity", unit="", variant=f"{ranks} ranks", **measured, **fields))
        if ranks != fewest:
            rows.append(_agreement(run, found[fewest], fields | {"variant": f"{ranks} ranks against {fewest}"}))
    return rows


def _agreement(run: dict[str, Any], first: dict[str, Any], fields: dict[str, Any]) -> Row:
    same = [a == b for a, b in zip(run["kept"], first["kept"], strict=True)]
    what = "layers that keep the same channels and dims"
    return Row(what=what, value=sum(same) / len(same), unit="share", **fields)


def work(job: dict[str, Any]) -> dict[str, Any] | None:
    """What every rank does: a timed compression of a shape, or a compressed real model's perplexity."""
    device = torch.device(job["device"])
    with parallel.ranks(device) as where:
        if "shape" in job:
            found = time_compression(job["shape"], where, **job["options"])
        else:
            found = _quality(job["model"], where, job["windows"], job["ratio"])
        return found if parallel.rank() == 0 else None


def _quality(name: str, device: torch.device, windows: int, ratio: float) -> dict[str, Any]:
    from modegpt.evaluate import perplexity
    from modegpt.pipeline import compress
    from modegpt.sources import load_model, load_text, token_windows

    model, tokenizer = load_model(name, device=str(device))
    small, _ = compress(model, load_text("wiki-passages", "calibration"), tokenizer=tokenizer, ratio=ratio)
    held_out = token_windows(load_text("wiki-passages", "evaluation"), tokenizer, windows, 2048, what="wiki-passages")
    measured = perplexity(small, held_out)
    found = {"perplexity": measured.perplexity, "standard_error": measured.standard_error}
    return found | {"kept": [kept_checksum(layer) for layer in family_layers(small)]}


if __name__ == "__main__":
    outcome = work(json.loads(sys.argv[1]))
    if outcome is not None:
        write_whole(Path(sys.argv[2]), json.dumps(outcome))
