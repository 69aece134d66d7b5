"""`modegpt bench throughput`: tokens per second of compressed models beside the dense one, and what is allowed.

Dense and compressed models of a published shape are made with random weights on the device, timed in one run, and
every speed-up stands beside the bound that the removed operations (prefill) or bytes (decoding) set.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from modegpt.allocate import check_ratio, ranks_for, uniform_allocation
from modegpt.bench.bounds import decode_bytes, layer_ranks, prefill_flops
from modegpt.bench.kernels import BACKENDS, AttentionCase, attention_row, kernel_profile, linear_row, timed
from modegpt.bench.shapes import random_model
from modegpt.cli import out, run_alone, write_json
from modegpt.errors import ModegptError
from modegpt.families import FAMILIES
from modegpt.families.base import derived_config, rank_lists
from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM
from modegpt.report import environment

STEPS = 32  # decoded tokens in one timing
ROOM = 64  # of the cache beyond the prompt, so that no step runs over it


@dataclass(frozen=True)
class Candidate:
    """A model that is timed. Ratio 0 is the dense one."""

    ratio: float
    multiple_of: int
    model: PreTrainedModel

    @property
    def name(self) -> str:
        return f"{self.ratio:.0%} removed" if self.ratio else "dense"


def compressed_model(dense: PreTrainedModel, ratio: float, multiple_of: int) -> PreTrainedModel:
    """A random compressed model with the ranks that `modegpt compress --allocation uniform` gives, beside `dense`.

    It has the dense model's config, device and dtype, and nothing of its weights; every head keeps random pairs.
    """
    shape = FAMILIES["llama"].shape(dense)
    ranks = ranks_for(uniform_allocation(dense.config.num_hidden_layers, ratio), shape, multiple_of)
    config = derived_config(ModeGPTLlamaConfig, dense, **rank_lists(ranks))
    with torch.device("meta"):  # the constructor makes dense layers first
        model = ModeGPTLlamaForCausalLM(config).to(dense.dtype).eval().requires_grad_(False)
    model.to_empty(device=dense.device)
    model.model.rotary_emb = dense.model.rotary_emb
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter) if parameter.dim() == 1 else parameter.normal_(std=config.initializer_range)
    for layer in model.model.layers:
        index = layer.self_attn.rotary_index
        chosen = torch.rand(len(index), shape.query_key // 2, device=index.device).argsort(-1)
        pairs = chosen[:, : index.shape[1] // 2].sort(-1).values
        index.copy_(torch.cat([pairs, pairs + shape.query_key // 2], -1))
    return model


class Decoding:
    """Greedy decoding, one token a step for each of `batch` sequences, over a static cache that is filled randomly.

    Args:
        model: dense or compressed.
        batch: sequences decoded together.
        filled: tokens in the cache before the first step.
    """

    def __init__(self, model: PreTrainedModel, batch: int, filled: int) -> None:
        self.model, self.filled, self.call = model, filled, model
        self.cache = StaticCache(config=model.config, max_cache_len=filled + ROOM)
        self.first = torch.randint(model.config.vocab_size, (batch, 1), device=model.device)
        self.ids = self.first.clone()
        self.step()  # makes the cache's tensors
        for layer in self.cache.layers:
            layer.keys.normal_()
            layer.values.normal_()

    def restart(self) -> None:
        """Back to the first step."""
        self.ids.copy_(self.first)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.filled)

    def step(self) -> Tensor:
        """Decode one token; returns the logits (batch, 1, vocabulary)."""
        logits = self.call(self.ids, past_key_values=self.cache, use_cache=True).logits
        self.ids.copy_(logits.argmax(-1))
        return logits

    def steps(self, step: Callable[[], object]) -> None:
        """Decode `STEPS` tokens from the start."""
        self.restart()
        for _ in range(STEPS):
            step()

    def capture(self) -> torch.cuda.CUDAGraph:
        """Record one step as a CUDA graph; replaying it decodes the next token."""
        self.restart()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.restart()
        with torch.cuda.graph(graph):
            self.step()
        return graph


def check_model(model: PreTrainedModel, tokens: int = 64) -> dict[str, float]:
    """Compare logits after `tokens` of a prompt with and without a static cache: the relative difference."""
    ids = torch.randint(model.config.vocab_size, (2, tokens + 1), device=model.device)
    whole = model(ids, use_cache=False).logits[:, -1].double()
    cache = StaticCache(config=model.config, max_cache_len=tokens + 16)
    model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cached = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1].double()
    return {"largest_logit": float(whole.abs().max()), "cache_error": float((cached - whole).norm() / whole.norm())}


class Bench:
    """Times candidates, collects rows with their bounds, and keeps the results file up to date."""

    def __init__(self, results: dict[str, Any], file: Path, device: torch.device) -> None:
        self.results, self.file, self.device = results, file, device
        self.rows: list[dict[str, Any]] = results.setdefault("rows", [])
        self.start = time.perf_counter()

    def say(self, words: str) -> None:
        out.print(f"{time.perf_counter() - self.start:7.1f} s  {words}")

    def save(self) -> None:
        write_json(self.file, self.results)

    def attempt(self, what: str, run: Callable[[], None], minutes: float, needs: float = 0) -> None:
        """Run one step of the plan if there is time for it; a failure is noted and the rest goes on."""
        if time.perf_counter() - self.start + needs > 60 * minutes:
            self.results["left_out"].append(what)
            self.say(f"{what}: no time left")
            return
        try:
            with torch.no_grad():
                run()
        except Exception as error:  # whatever a kernel, a compiler or the memory says is a result here
            self._fails({"step": what}, error)
        self.save()

    def _fails(self, what: dict[str, Any], error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        self.results["failures"].append(what | {"error": reason})
        self.say(f"{what} fails: {reason}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def prefill(self, candidates: Iterable[Candidate], batch: int, tokens: int, mode: str = "eager") -> None:
        """Time forward passes over `batch` prompts that return the last logits; no cache is kept."""
        for candidate in candidates:
            model = candidate.model
            ids = torch.randint(model.config.vocab_size, (batch, tokens), device=self.device)

            run = partial(model, ids, use_cache=False, logits_to_keep=1)
            facts = {"phase": "prefill", "mode": mode, "batch": batch, "tokens": tokens}
            try:
                if mode == "compiled":
                    began = time.perf_counter()
                    for layer in model.model.layers:
                        layer.compile(dynamic=False)
                    run()
                    facts["compile_seconds"] = time.perf_counter() - began
                timing = timed(run, self.device).per(1)
            except Exception as error:
                self._fails(facts | {"model": candidate.name}, error)
                continue
            finally:
                for layer in model.model.layers:
                    layer._compiled_call_impl = None
            bound = prefill_flops(model.config, batch, tokens)
            self._note(candidate, facts, timing, batch * tokens, {"flops": bound})

    def decode(self, candidates: Iterable[Candidate], batch: int, context: int, modes: Iterable[str]) -> None:
        """Time greedy decoding over a static cache, `STEPS` tokens from `context` on, launched in several ways."""
        for candidate in candidates:
            decoding = Decoding(candidate.model, batch, context)
            for mode in modes:
                facts = {"phase": "decode", "mode": mode, "batch": batch, "tokens": context}
                try:
                    step: Callable[[], object] = decoding.step
                    if mode.startswith("compiled"):
                        began = time.perf_counter()
                        decoding.call = torch.compile(candidate.model, dynamic=False)
                        decoding.restart()
                        decoding.step()
                        facts["compile_seconds"] = time.perf_counter() - began
                    if mode.endswith("graph"):
                        step = decoding.capture().replay
                        facts["same_tokens"] = self._same_tokens(decoding, step)
                    timing = timed(partial(decoding.steps, step), self.device).per(STEPS)
                except Exception as error:
                    self._fails(facts | {"model": candidate.name}, error)
                    continue
                finally:
                    decoding.call = candidate.model
                seen = context + (STEPS + 1) / 2  # tokens that a query sees on average, itself included
                bound = decode_bytes(candidate.model.config, batch, seen, candidate.model.dtype.itemsize)
                self._note(candidate, facts, timing, batch, {"bytes": bound})

    def _same_tokens(self, decoding: Decoding, replay: Callable[[], object]) -> bool:
        """Whether a few steps launched either way write the same tokens."""
        written = []
        for step in (decoding.step, replay):
            decoding.restart()
            for _ in range(3):
                step()
            written.append(decoding.ids.clone())
        return torch.equal(*written)

    def _note(self, candidate: Candidate, facts: dict, timing: dict, tokens: int, bound: dict[str, float]) -> None:
        layers = candidate.model.config.num_hidden_layers
        of = {"ratio": candidate.ratio, "multiple_of": candidate.multiple_of, "layers": layers}
        row = facts | of | timing | {"tokens_per_second": tokens / timing["seconds"]} | bound
        self.rows.append(row | speed_up(row, self.rows))
        self.say(describe(self.rows[-1]))

    def profile(self, candidates: Iterable[Candidate], batch: int, tokens: int, context: int) -> None:
        """Sort the kernels of a prefill and of one decoding step by kind."""
        for candidate in candidates:
            ids = torch.randint(candidate.model.config.vocab_size, (batch, tokens), device=self.device)
            decoding = Decoding(candidate.model, 1, context)
            replay = decoding.capture().replay
            decoding.restart()
            prompts = partial(candidate.model, ids, use_cache=False, logits_to_keep=1)
            runs = {"prefill": prompts, "decode": replay}
            for phase, run in runs.items():
                facts = {"phase": phase, "batch": batch if phase == "prefill" else 1, "ratio": candidate.ratio}
                facts |= {"tokens": tokens if phase == "prefill" else context}
                profile = kernel_profile(run)
                self.results["profiles"].append(facts | profile)
                shares = ", ".join(
                    f"{kind} {1e3 * k['seconds']:.2f} ({k['count']})" for kind, k in profile["kinds"].items()
                )
                self.say(f"profile {phase} {candidate.name}, ms (kernels): {shares}")


KEY = ("phase", "mode", "batch", "tokens", "layers")


def speed_up(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Measured and allowed speed-up of a row against the dense row of the same case, and their quotient."""
    dense = [other for other in rows if other["ratio"] == 0 and all(other[key] == row[key] for key in KEY)]
    if not dense or row["ratio"] == 0:
        return {}
    cost = "flops" if row["phase"] == "prefill" else "bytes"
    measured = dense[-1]["seconds"] / row["seconds"]
    allowed = dense[-1][cost] / row[cost]
    return {"speed_up": measured, "allowed": allowed, "reached": measured / allowed}


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    name = f"{row['ratio']:.0%}, multiples of {row['multiple_of']}" if row["ratio"] else "dense"
    rate = row["flops"] / 1e12 if row["phase"] == "prefill" else row["bytes"] / 1e12
    unit = "TFLOP/s" if row["phase"] == "prefill" else "TB/s"
    words = f"{row['phase']} {row['mode']}, batch {row['batch']} x {row['tokens']}, {row['layers']} layers, {name}: "
    words += f"{1e3 * row['seconds']:.3f} ms ({1e3 * row['fastest']:.3f} to {1e3 * row['slowest']:.3f}), "
    words += f"{row['tokens_per_second']:,.0f} tokens/s, {rate / row['seconds']:.3g} {unit}"
    if "compile_seconds" in row:
        words += f", compiled in {row['compile_seconds']:.0f} s"
    if "speed_up" in row:
        words += f", {row['speed_up']:.3f}x of {row['allowed']:.3f}x ({row['reached']:.3f})"
    return words


def advised_multiple(rows: Iterable[dict[str, Any]], layers: int, tolerance: float = 0.02) -> dict[str, Any]:
    """The smallest `multiple_of` whose mean speed-up in the sweep lies within `tolerance` of the best.

    Small multiples leave the allocation freer, so a larger one must pay for itself. The mean is geometric, over
    ratios, phases and batches that every multiple was timed at.
    """
    sweep = [row for row in rows if row["layers"] == layers and "speed_up" in row]
    cases: dict[tuple, dict[int, float]] = {}
    for row in sweep:
        cases.setdefault((row["ratio"], *(row[key] for key in KEY)), {})[row["multiple_of"]] = row["speed_up"]
    multiples = {row["multiple_of"] for row in sweep}
    whole = [case for case in cases.values() if set(case) == multiples]
    if len(multiples) < 2 or not whole:
        return {}
    means = {multiple: geometric_mean([case[multiple] for case in whole]) for multiple in sorted(multiples)}
    enough = (1 - tolerance) * max(means.values())
    advised = min(multiple for multiple, mean in means.items() if mean >= enough)
    return {"mean_speed_up": {str(k): v for k, v in means.items()}, "tolerance": tolerance, "multiple_of": advised}


def throughput(
    file: Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Gets the results, after every step.")],
    shape: Annotated[str, typer.Option(help="Published shape to build.")] = "llama-2-7b",
    ratios: Annotated[str, typer.Option(metavar="A,B", help="Ratios to remove.")] = "0.3,0.5,0.2",
    multiple_of: Annotated[int, typer.Option(min=1, help="Of the ranks in the main table.")] = 8,
    multiples: Annotated[str, typer.Option(metavar="A,B", help="What the sweep compares.")] = "1,8,16,64,128",
    layers: Annotated[int, typer.Option(min=0, help="Layers of the models; 0 takes the shape's own.")] = 0,
    sweep_layers: Annotated[int, typer.Option(min=1, help="Layers of the models in the sweep.")] = 8,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of a prompt in prefill.")] = 2048,
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache when decoding starts.")] = 512,
    batches: Annotated[str, typer.Option(metavar="A,B", help="Prompts together in prefill.")] = "4,1,16,64",
    decode_batches: Annotated[str, typer.Option(metavar="A,B", help="Sequences decoded together.")] = "1,16,64,128",
    compiled: Annotated[bool, typer.Option(help="Also time what torch.compile makes of the models.")] = True,
    minutes: Annotated[float, typer.Option(min=0, help="No step starts after this time.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Draws weights and tokens.")] = 0,
) -> None:
    """Time prefill and decoding of dense and compressed models with random weights, beside what is allowed."""
    wanted, sizes = _numbers("--ratios", ratios, float), _numbers("--multiples", multiples, int)
    prefills, decodes = _numbers("--batches", batches, int), _numbers("--decode-batches", decode_batches, int)
    for ratio in wanted:
        check_ratio(ratio)
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModegptError("no GPU is found: add --device cpu, a small --layers and short --prompt to try it")
    if not file.absolute().parent.is_dir():
        raise ModegptError(f"--out {file}: give a file in a folder that exists")
    gpu, kind = place.type == "cuda", getattr(torch, dtype)
    torch.manual_seed(seed)
    torch._dynamo.config.recompile_limit = 64  # layers of several sizes are several programs

    results = environment(place) | {"shape": shape, "dtype": dtype, "seed": seed, "decoded_tokens": STEPS}
    results |= {name: [] for name in ("models", "rows", "profiles", "attention", "linear", "failures", "left_out")}
    bench = Bench(results, file, place)
    models: list[Candidate] = []

    def build() -> None:
        dense = random_model(shape, layers or None, device=place, dtype=kind)
        models.append(Candidate(0, 1, dense))
        models.extend(Candidate(ratio, multiple_of, compressed_model(dense, ratio, multiple_of)) for ratio in wanted)
        for candidate in models:
            ranks = layer_ranks(candidate.model.config)
            facts = {"ratio": candidate.ratio, "ranks": [asdict(rank) for rank in ranks]} | check_model(candidate.model)
            results["models"].append(facts)
            bench.say(f"{candidate.name}: first layer {ranks[0]}, with a cache off by {facts['cache_error']:.1e}")

    def sweep() -> None:
        dense = random_model(shape, sweep_layers, device=place, dtype=kind)
        for multiple in (None, *sizes):
            for ratio in wanted if multiple else [0.0]:
                model = compressed_model(dense, ratio, multiple) if multiple else dense
                candidate = [Candidate(ratio, multiple or 1, model)]
                bench.prefill(candidate, prefills[0], prompt)
                for batch in decodes[:2]:
                    bench.decode(candidate, batch, context, ["graph"] if gpu else ["eager"])
            bench.save()
        results["advice"] = advised_multiple(bench.rows, sweep_layers)
        bench.say(f"advice: {results['advice']}")

    def attention() -> None:
        heads = models[0].model.config.num_attention_heads
        dims = [(128, 128), (104, 104), (96, 96), (90, 90), (90, 89), (64, 64), (96, 64), (64, 96), (104, 96)]
        cases = [AttentionCase("prefill", prefills[0], heads, prompt, *pair) for pair in dims]
        cases += [AttentionCase("decode", n, heads, context + ROOM, *pair) for n in decodes[:2] for pair in dims]
        for case, backend in itertools.product(cases, BACKENDS):
            row = attention_row(case, backend, place, kind)
            results["attention"].append(row)
            found = (
                f"{1e6 * row['seconds']:.1f} us {row['kernels']}" if "seconds" in row else f"no: {row['error'][:200]}"
            )
            where = f"{case.phase} batch {case.batch}, dims {case.query_key}/{case.value}, {backend}"
            bench.say(f"attention {where}: {found}")

    def linear() -> None:
        config = models[0].model.config
        exact = 0.7 * config.intermediate_size
        widths = [int(exact), 2 * int(exact / 2), *(n * round(exact / n) for n in (4, 8, 16, 32, 64, 128, 256))]
        for tokens, channels in itertools.product((prefills[0] * prompt, *decodes[:2]), widths):
            for sizes_of in ((config.hidden_size, channels), (channels, config.hidden_size)):
                row = linear_row(tokens, *sizes_of, place, kind)
                results["linear"].append(row)
                rate, what = row["flops"] / row["seconds"] / 1e12, f"{row['fan_in']} -> {row['fan_out']}"
                bench.say(f"linear {what}, {tokens} tokens: {1e6 * row['seconds']:.1f} us, {rate:.3g} TFLOP/s")

    launched = ["graph", "eager"] if gpu else ["eager"]
    plan: list[tuple[str, Callable[[], None], float]] = [
        ("models", build, 0),
        (f"prefill {prefills[0]}", lambda: bench.prefill(models, prefills[0], prompt), 0),
        (f"decode {decodes[0]}", lambda: bench.decode(models, decodes[0], context, launched), 0),
    ]
    if gpu:
        plan.append(("profile", lambda: bench.profile(models[:3], prefills[0], prompt, context), 0))
    if gpu and compiled:
        plan.append(("prefill compiled", lambda: bench.prefill(models[:3], prefills[0], prompt, "compiled"), 40))
        plan += [
            (f"decode compiled {n}", lambda n=n: bench.decode([models[n]], decodes[0], context, ["compiled graph"]), 40)
            for n in range(min(3, 1 + len(wanted)))
        ]
    if gpu:
        plan += [("attention", attention, 10), ("linear", linear, 5)]
    plan.append(("sweep", sweep, 20))
    plan += [(f"prefill {n}", lambda n=n: bench.prefill(models, n, prompt), 0.1 * n) for n in prefills[1:]]
    plan += [(f"decode {n}", lambda n=n: bench.decode(models, n, context, launched[:1]), 8) for n in decodes[1:]]
    long = [(n, 4 * context) for n in decodes[:2]]
    plan += [(f"decode {n} x {t}", lambda n=n, t=t: bench.decode(models, n, t, launched[:1]), 8) for n, t in long]
    for what, run, needs in plan:
        bench.attempt(what, run, minutes, needs)
    worst = min((row["reached"] for row in bench.rows if "reached" in row), default=math.nan)
    bench.say(f"done: {len(bench.rows)} rows, lowest share of the allowed speed-up {worst:.3f}; written: {file}")


def _numbers(option: str, words: str, kind: type) -> list:
    try:
        return [kind(word) for word in words.split(",")]
    except ValueError as error:
        raise ModegptError(f"{option} is a list such as {kind(1)},{kind(2)}, got '{words}'") from error


if __name__ == "__main__":
    run_alone(throughput)
