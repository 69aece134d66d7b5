"""The work of `modegpt bench llama-cpp`: dense and compressed models in llama.cpp, on the same cores, in one run."""

import copy
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt.calibrate import collect
from modegpt.checkpoint.gguf_file import write_gguf
from modegpt.console import command_line, out
from modegpt.llama_cpp import LlamaCpp
from modegpt.pipeline import DESTINATIONS, compress
from modegpt.sources import load_model, load_text, token_windows
from modegpt.study.results import DENSE, Results, Row, save

PROMPT = "The history of the city begins in the twelfth century, when"
GREEDY = 60  # tokens that are compared


def bench(file: Path, model: str, ratio: float, text: Mapping[str, Any], kinds: Sequence[str], **how: int) -> None:
    """Compress for each destination, run all in llama.cpp, write what came out to `file`.

    Args:
        text: `calibration`, `samples` and `length` of a window.
        kinds: how the matrices are stored, of `gguf_file.TYPES`.
        how: `tokens` to decode, `repeats`, `threads`.
    """
    dense, tokenizer = load_model(model, dtype="float32")
    passage = load_text(text["calibration"], "calibration")
    tokens = token_windows(passage, tokenizer, text["samples"], text["length"], 0, what=text["calibration"])
    statistics_of_all = collect(dense, tokens)
    models = {DENSE: dense}
    block = {"multiple_of": DESTINATIONS["gguf"]["multiple_of"]}  # for q8_0, and the same for all
    for name, limits in DESTINATIONS.items():
        models[name], report = compress(copy.deepcopy(dense), statistics_of_all, ratio=ratio, **limits | block)
        out.print(f"{name}: {report}")
    rows = rows_of(models, tokenizer, kinds, {"model": Path(model).name, "ratio": ratio, "seed": 0}, **how)
    settings = {"model": Path(model).name, "ratio": ratio, "kinds": list(kinds), "prompt": PROMPT} | dict(text) | how
    title = "Dense and compressed models in llama.cpp"
    found = save(Results.now("bench.llama-cpp", title, settings, rows, dense.device, command_line()), file)
    out.print(f"written to {found}")


@torch.no_grad()
def rows_of(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    kinds: Sequence[str],
    about: Mapping[str, Any],
    tokens: int = 128,
    repeats: int = 7,
    threads: int = 2,
) -> list[Row]:
    """Size, speed and greedy text of each model, stored in each kind; `models` has the dense one first.

    The models take turns, so that a busy moment of the machine meets all. `speed_up` in the details is the median over
    the turns of a model's speed over the dense model's. Log-probabilities are compared where greedy tokens agree.
    """
    ids, rows = tokenizer(PROMPT).input_ids, []
    ours = {name: _greedy(model, ids) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            running = {}
            for name, model in models.items():
                file = Path(folder, f"{name}.{kind}.gguf")
                architecture = write_gguf(model, tokenizer, file, kind)
                where = dict(about) | {"method": DENSE if name == DENSE else "modegpt", "variant": f"{name}, {kind}"}
                where["ratio"] = 0.0 if name == DENSE else about["ratio"]
                details = {"architecture": architecture}
                rows.append(
                    Row(what="size on disk", value=float(file.stat().st_size), unit="bytes", details=details, **where)
                )
                running[name] = LlamaCpp(file, threads), where
                rows += _agreement(running[name][0].greedy(ids, GREEDY), *ours[name], where)
            speeds = {name: [] for name in running}
            for _ in range(repeats):
                for name, (program, _) in running.items():
                    speeds[name].append(program.greedy(ids, tokens).tokens_per_second)
            for name, (_, where) in running.items():
                turns = [mine / theirs for mine, theirs in zip(speeds[name], speeds[DENSE], strict=True)]
                about_speed = {"speed_up": statistics.median(turns), "turns": speeds[name], "tokens": tokens}
                spread = statistics.stdev(speeds[name]) if repeats > 1 else None
                value = statistics.median(speeds[name])
                rows.append(
                    Row(
                        what="decode",
                        value=value,
                        unit="tokens/s",
                        spread=spread,
                        spread_over="repeats" if spread is not None else "",
                        details=about_speed,
                        **where,
                    )
                )
                out.print(f"{where['variant']}: {value:.1f} tokens/s, {statistics.median(turns):.2f} times the dense")
    return rows


def _greedy(model: PreTrainedModel, ids: list[int]) -> tuple[list[int], list[float]]:
    """Our own greedy tokens and their log-probabilities, without an end of text."""
    prompt = torch.tensor([ids], device=model.device)
    text = model.generate(
        prompt, max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False, pad_token_id=0, num_beams=1
    )
    logprobs = model(text).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    tokens = text[0, len(ids) :]
    return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()


def _agreement(found: Any, tokens: list[int], logprobs: list[float], where: Mapping[str, Any]) -> list[Row]:
    same = sum(one == other for one, other in zip(tokens, found.tokens, strict=False))
    rows = [Row(what="greedy tokens in common", value=same / GREEDY, unit="share", **where)]
    if same == len(found.logprobs) == GREEDY:
        far = max(abs(one - other) for one, other in zip(logprobs, found.logprobs, strict=True))
        rows.append(Row(what="log-probabilities differ", value=far, unit="", **where))
    return rows
