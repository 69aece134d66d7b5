"""A model larger than the memory, whole: from disk to disk on one or several GPUs, killed on the way if asked to."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from modegpt import parallel
from modegpt.console import out
from modegpt.errors import ModegptError
from modegpt.files import write_whole
from modegpt.machine import now, peak_host_bytes, peak_memory_bytes
from modegpt.sources import load_model
from modegpt.streaming import compress_folder, layer_file, unfinished
from modegpt.study.bench.compress import random_facts
from modegpt.study.bench.shapes import config_of, random_tokens
from modegpt.study.results import Row

PROBE_SECONDS = 0.05
TOLD = 10  # layers between two lines that say how far it is
NEW_TOKENS = 8


def streamed(job: dict[str, Any], ranks: int, kill_after: int | None) -> list[Row]:
    """Compress folder `job["source"]` into `job["target"]`; killed after so many layers, and started again, if asked.

    Returns:
        Rows: seconds of all, of the steps and of waiting for reads (the slowest rank's), peaks of memory (the fullest
        rank's), bytes read by all ranks and bytes of the result. After a kill all but the first are of the second try.

    Raises:
        ModegptError: a try failed; it was done before it could be killed.
    """
    tries = []
    if kill_after:
        tries.append(launch(job, ranks, kill_after))
    found = launch(job, ranks)
    tries.append({"seconds": found["seconds"], "layers": config_of(job["shape"], job["layers"]).num_hidden_layers})
    fields = {"model": job["shape"], "method": "modegpt", "ratio": job["ratio"], "data": "random tokens", "seed": 0}
    fields["variant"] = variant_of(job, ranks)
    total = sum(one["seconds"] for one in tries)
    details = {"tries": tries} | found | {name: _file_system(Path(job[name])) for name in ("source", "target")}
    if kill_after:
        fields["variant"] += f", killed after {tries[0]['layers']} layers and resumed"
    rows = [Row(what="compression", value=total, unit="s", details=details, **fields)]
    everyones = found["ranks"]

    def most(name: str) -> float:
        return float(max(one[name] for one in everyones))

    seconds = {step: max(one["seconds"].get(step, 0.0) for one in everyones) for step in ("calibrate", "decompose")}
    seconds |= {"save": max(one["seconds"]["save"] for one in everyones), "waiting for reads": most("waited")}
    rows += [Row(what=f"compression: {step}", value=value, unit="s", **fields) for step, value in seconds.items()]
    sizes = {"peak memory": most("peak_bytes"), "peak host memory": most("peak_host_bytes")}
    sizes |= {"bytes read": float(sum(one["bytes_read"] for one in everyones))}
    sizes |= {"bytes written": float(sum(file.stat().st_size for file in Path(job["target"]).iterdir()))}
    return rows + [Row(what=what, value=value, unit="bytes", **fields) for what, value in sizes.items()]


def loaded(job: dict[str, Any], ranks: int) -> list[Row]:
    """Load the result in a process of its own, run it for a few tokens, and remove it."""
    found = launch({"load": job["target"], "device": job["device"]}, 1)
    shutil.rmtree(job["target"])
    fields = {"model": job["shape"], "method": "modegpt", "ratio": job["ratio"], "variant": variant_of(job, ranks)}
    return [Row(what="load", value=found["load"], unit="s", details=found, **fields)]


def variant_of(job: dict[str, Any], ranks: int) -> str:
    """How the rows of a run are told apart from others'."""
    some = f", {job['layers']} of {config_of(job['shape']).num_hidden_layers} layers" if job["layers"] else ""
    return f"streamed, {ranks} rank{'s' * (ranks > 1)}{some}"


def launch(job: dict[str, Any], ranks: int, kill_after: int | None = None) -> dict[str, Any]:
    """Run `work` on so many processes by torchrun.

    Returns:
        What rank 0 found; or, if all were killed when `kill_after` layers had been written, seconds since the first
        token and layers written.

    Raises:
        ModegptError: it failed, with the reason that it gave; it was done before it could be killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, started, said = (Path(folder, name) for name in ("result.json", "started", "said"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "modegpt.study.bench.stream", json.dumps(job | {"started": str(started)}), str(result)]
        with said.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as torchrun:
            try:
                killed = _watch(torchrun, job, started, kill_after)
            finally:
                _kill(torchrun)
        if killed:
            return killed
        if torchrun.returncode:
            words = said.read_text(errors="replace")
            reasons = re.findall(r"^modegpt: .*|^[\w.]*(?:Error|Exception): .*", words, re.MULTILINE)
            raise ModegptError(f"{ranks} ranks failed: {reasons[0] if reasons else words[-300:]}")
        if kill_after:
            raise ModegptError(f"all was done before a kill after {kill_after} layers: give fewer")
        return json.loads(result.read_text())


def _watch(
    torchrun: subprocess.Popen[bytes], job: dict[str, Any], started: Path, kill_after: int | None
) -> dict[str, Any] | None:
    """Wait for the end, and say how far it is; or kill all ranks when enough layers are there."""
    told = 0
    while torchrun.poll() is None:
        time.sleep(PROBE_SECONDS)
        layers = _written(job)
        if not started.exists():
            continue
        seconds = time.time() - started.stat().st_mtime
        if kill_after and layers >= kill_after:
            _kill(torchrun)
            return {"seconds": seconds, "layers": _written(job)}
        if layers >= told + TOLD:
            told = layers
            out.print(f"  {layers} layers written after {seconds:.0f} s")
    return None


def _written(job: dict[str, Any]) -> int:
    """Layers that a second try need not make again: those before the first gap."""
    layers = 0
    while "target" in job and layer_file(unfinished(Path(job["target"])), layers).is_file():
        layers += 1
    return layers


def _kill(torchrun: subprocess.Popen[bytes]) -> None:
    """SIGKILL to torchrun and its ranks, which have sessions of their own; nothing if it has ended."""
    if torchrun.poll() is None:
        parent = psutil.Process(torchrun.pid)
        family = [*parent.children(recursive=True), parent]
        for process in family:
            process.kill()
        psutil.wait_procs(family[:-1])
        torchrun.wait()


def _file_system(folder: Path) -> str:
    """The kind of disk a folder is on: ext4, tmpfs."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def work(job: dict[str, Any]) -> dict[str, Any] | None:
    """What every rank does: its share of a streamed compression, or (one rank) a few tokens of the result."""
    with parallel.ranks(torch.device(job["device"])) as where:
        if "load" in job:
            return _generate(job["load"], where)
        sizes = (job["samples"], job["length"])
        tokens = random_tokens(config_of(job["shape"], job["layers"]), *sizes)
        place = {"device": where, "dtype": torch.bfloat16, "facts": random_facts(job["shape"], *sizes, where)}
        options = {name: job[name] for name in ("ratio", "batch_size")}
        parallel.gather(None)  # all start together
        Path(job["started"]).touch()
        start = now()
        report = compress_folder(Path(job["source"]), Path(job["target"]), tokens, None, **place, **options)
        seconds = now() - start
        own = {"seconds": report.seconds, "peak_bytes": peak_memory_bytes(), "peak_host_bytes": peak_host_bytes()}
        own |= report.streamed[parallel.rank()]
        if psutil.LINUX:
            own["io"] = psutil.Process().io_counters()._asdict()
        found = {"seconds": seconds, "block_ratio": report.block_ratio, "ranks": parallel.gather(own)}
        found |= {"layers_done_before": report.settings["layers_done_before"], "samples": len(tokens)}
        return found if parallel.rank() == 0 else None


@torch.no_grad()
def _generate(folder: str, device: torch.device) -> dict[str, Any]:
    """Seconds to load and to generate, the tokens, and peaks of memory."""
    start = now()
    model, _ = load_model(folder, dtype="bfloat16", device=str(device))
    ready = now()
    prompt = random_tokens(model.config, 1, NEW_TOKENS).to(device)
    greedy = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)
    if not torch.isfinite(model(written).logits).all():
        raise ModegptError("the result's logits hold NaN or inf")
    found = {"load": ready - start, "generate": now() - ready, "tokens": written[0, prompt.shape[1] :].tolist()}
    return found | {"peak_bytes": peak_memory_bytes(), "peak_host_bytes": peak_host_bytes()}


if __name__ == "__main__":
    outcome = work(json.loads(sys.argv[1]))
    if outcome is not None:
        write_whole(Path(sys.argv[2]), json.dumps(outcome))
