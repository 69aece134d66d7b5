"""`modegpt bench throughput`: tokens per second of compressed models beside the dense one, and what is allowed.

Dense and compressed models of a published shape are made with random weights on the device and timed in one run.
Every speed-up stands beside the bound that the removed operations (prefill) or bytes (decoding) set.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from modegpt.allocate import LayerShape, Ranks, SharedShape, ranks_for, sizes_of, uniform_allocation, units_of
from modegpt.console import command_line, out
from modegpt.errors import ModegptError
from modegpt.families import FAMILIES
from modegpt.families.base import derived_config, rank_lists
from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM
from modegpt.study.bench.bounds import decode_bytes, layer_ranks, prefill_flops
from modegpt.study.bench.decoding import ROOM, Decoding, cache_error
from modegpt.study.bench.kernels import BACKENDS, AttentionCase, attention_profile, kernel_profile, linear_timing
from modegpt.study.bench.shapes import config_of, random_model
from modegpt.study.bench.timing import Timing, timed
from modegpt.study.figures.throughput import plain, throughput_against_ratio
from modegpt.study.results import DENSE, Results, Row, save, write
from modegpt.style import keep

STEPS, EAGER_STEPS = 32, 8  # decoded tokens in one timing; launching kernels one by one takes long
COST = {"prefill": "flops", "decode": "bytes"}  # what bounds the speed of each phase
CASE = ("mode", "batch", "tokens", "layers")  # details that a dense and a compressed row must share


@dataclass(frozen=True)
class Candidate:
    """A model that is timed. Ratio 0 is the dense one, unless fused; `like` names the model whose sizes it has."""

    ratio: float
    multiple_of: int
    model: PreTrainedModel
    like: str = ""
    fused: bool = False


def ranks_like(config: PreTrainedConfig, shape: LayerShape, layers: int, multiple_of: int) -> list[Ranks]:
    """What each layer of a compressed model keeps, as a share, stretched over `layers` of another shape and rounded."""
    dense = {"query_key": config.head_dim, "value": config.head_dim, "mlp": config.intermediate_size}
    heads, width = config.num_attention_heads + config.num_key_value_heads, config.hidden_size
    kept = [[getattr(rank, module) / dense[module] for module in dense] for rank in layer_ranks(config)]
    for rank, sizes in zip(layer_ranks(config), kept, strict=True):
        if rank.shared:  # its share of the parameters
            sizes[0] = rank.shared * (1 / width + 1 / (heads * rank.query_key))
    shares = torch.tensor(kept)
    shares = nn.functional.interpolate(shares.T[None], layers, mode="linear", align_corners=True)[0].T
    allowed = [sizes_of(getattr(shape, module), units_of(shape, multiple_of)[module]) for module in dense]
    return [
        shape.ranks(*(min(of, key=lambda s: abs(s - share * of[-1])) for of, share in zip(allowed, layer, strict=True)))
        for layer in shares.tolist()
    ]


def compressed_model(
    dense: PreTrainedModel, ratio: float, multiple_of: int, ranks: list[Ranks] | None = None
) -> PreTrainedModel:
    """A random compressed model with these ranks or those that `modegpt compress --allocation uniform` gives.

    It has the dense model's config, device and dtype, and nothing of its weights; every head keeps random pairs.
    """
    shape = FAMILIES["llama"].shape(dense)
    ranks = ranks or ranks_for(uniform_allocation(dense.config.num_hidden_layers, ratio), shape, multiple_of)
    config = derived_config(ModeGPTLlamaConfig, dense, **rank_lists(ranks))
    with torch.device("meta"):  # the constructor makes dense layers first
        model = ModeGPTLlamaForCausalLM(config).to(dense.dtype).eval().requires_grad_(False)
    model.to_empty(device=dense.device)
    model.model.rotary_emb = dense.model.rotary_emb
    for parameter in model.parameters():
        nn.init.ones_(parameter) if parameter.dim() == 1 else parameter.normal_(std=config.initializer_range)
    for layer in model.model.layers:
        index = layer.self_attn.rotary_index
        chosen = torch.rand(len(index), shape.query_key // 2, device=index.device).argsort(-1)
        pairs = chosen[:, : index.shape[1] // 2].sort(-1).values
        index.copy_(torch.cat([pairs, pairs + shape.query_key // 2], -1))
    return model


class Bench:
    """Times candidates, collects rows with their bounds, and keeps the results file up to date."""

    def __init__(self, settings: Mapping[str, Any], file: Path, device: torch.device, minutes: float) -> None:
        self.settings, self.device, self.minutes = dict(settings) | {"left_out": []}, device, minutes
        self.start = time.perf_counter()
        self.rows: list[Row] = []
        self.file = save(self.results(), file)

    def results(self) -> Results:
        """What was measured so far."""
        title = "Throughput against ratio"
        return Results.now("bench.throughput", title, self.settings, self.rows, self.device, command_line())

    def write(self) -> None:
        """Bring the file up to date."""
        write(self.results(), self.file)

    def say(self, words: str) -> None:
        """Print, with the seconds since the start."""
        out.print(f"{time.perf_counter() - self.start:7.1f} s  {words}")

    def attempt(self, what: str, run: Callable[[], None], needs: float = 0) -> None:
        """Run one step of the plan if there are `needs` seconds left; whatever fails is noted and the rest goes on."""
        if time.perf_counter() - self.start + needs > 60 * self.minutes:
            self.settings["left_out"].append(what)
            self.say(f"{what}: no time left")
        else:
            with torch.no_grad(), self.noting(what="step", unit="s", model="", method=DENSE, variant=what):
                run()

    def add(self, row: Row) -> None:
        """Note a row, on disk too, for a run that is killed. What is measured twice stands as last seen."""
        self.rows = [*(other for other in self.rows if other.key != row.key), row]
        self.write()
        self.say(describe(row))

    @contextmanager
    def noting(self, **fields: Any) -> Iterator[None]:
        """What a kernel, a compiler or the memory refuses becomes a row with the reason."""
        try:
            yield
        except Exception as error:
            details = fields.pop("details", {}) | {"error": f"{type(error).__name__}: {str(error)[:600]}"}
            self.add(Row(value=None, details=details, **fields))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def fields(self, phase: str, candidate: Candidate, mode: str, batch: int, tokens: int) -> dict[str, Any]:
        """What a row says of itself before it is measured."""
        layers = candidate.model.config.num_hidden_layers
        extras = f", multiples of {candidate.multiple_of}" if candidate.ratio else ""
        extras += f", sizes like {candidate.like}" if candidate.like else ""
        extras += ", fused" if candidate.fused else ""
        details = {"mode": mode, "batch": batch, "tokens": tokens, "layers": layers}
        details |= {"like": candidate.like, "fused": candidate.fused}
        return {
            "what": phase,
            "unit": "tokens/s",
            "model": f"{self.settings['shape']}, {layers} layers",
            "method": "modegpt" if candidate.ratio or candidate.fused else DENSE,
            "ratio": candidate.ratio,
            "variant": f"{mode}, batch {batch} x {tokens} tokens{extras}",
            "data": "random tokens",
            "seed": self.settings["seed"],
            "details": details | {"multiple_of": candidate.multiple_of if candidate.ratio else None},
        }

    def timing_row(self, fields: dict[str, Any], timing: Timing, tokens: int, cost: float) -> None:
        """Add a row: `tokens` in `timing`, and beside its speed-up what `cost`, FLOPs or bytes, allows."""
        details = fields.pop("details") | asdict(timing) | {COST[fields["what"]]: cost}
        details |= speed_up(fields["what"], details, self.rows)
        value, spread = tokens / timing.seconds, tokens * timing.deviation / timing.seconds**2
        self.add(Row(value=value, spread=spread, spread_over="repeats", details=details, **fields))

    def prefill(
        self, candidates: Iterable[Candidate], batch: int, tokens: int, mode: str = "eager", **options: Any
    ) -> None:
        """Time forward passes over `batch` prompts that return the last logits; no cache is kept.

        Mode "compiled" is torch.compile of each layer: all of one size share a program. `options` are those of `timed`.
        """
        for candidate in candidates:
            model, fields = candidate.model, self.fields("prefill", candidate, mode, batch, tokens)
            ids = torch.randint(model.config.vocab_size, (batch, tokens), device=self.device)
            run = partial(model, ids, use_cache=False, logits_to_keep=1)
            with self.noting(**fields), compiled_layers(model) if mode == "compiled" else nullcontext():
                if mode == "compiled":
                    fields["details"]["compile_seconds"] = self.first_call(run)
                timing = timed(run, self.device, **options)
                self.timing_row(fields, timing, batch * tokens, prefill_flops(model.config, batch, tokens))

    def decode(self, candidates: Iterable[Candidate], batch: int, context: int, modes: Iterable[str]) -> None:
        """Time greedy decoding over a static cache, from `context` tokens on.

        Modes: "eager" launches each kernel, "graph" replays one CUDA graph a token, "compiled graph" one of what
        torch.compile made of the model.
        """
        for candidate, mode in itertools.product(candidates, modes):
            model, fields = candidate.model, self.fields("decode", candidate, mode, batch, context)
            steps = EAGER_STEPS if mode == "eager" else STEPS
            fields["details"]["steps"] = steps
            with self.noting(**fields):
                decoding = Decoding(model, batch, context)
                if mode.startswith("compiled"):
                    decoding.call = torch.compile(model, dynamic=False)
                    decoding.restart()
                    fields["details"]["compile_seconds"] = self.first_call(decoding.step)
                step: Callable[[], object] = decoding.step
                if mode.endswith("graph"):
                    graph, logits = decoding.capture()
                    step = graph.replay
                    fields["details"]["difference"] = decoding.difference(step, logits)
                timing = timed(partial(decoding.steps, step, steps), self.device).per(steps)
                seen = context + (steps + 1) / 2  # tokens that a query sees on average, itself included
                cost = decode_bytes(model.config, batch, seen, model.dtype.itemsize)
                if mode.startswith("compiled"):
                    self.kernels(candidate, "decode", mode, (batch, context), step)
                self.timing_row(fields, timing, batch, cost)
            decoding = step = graph = logits = None  # the next cache may need this one's memory

    def first_call(self, run: Callable[[], object]) -> float:
        """Seconds of a first call, which compiles."""
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def profile(self, candidates: Iterable[Candidate], batch: int, tokens: int, context: int) -> None:
        """Sort the kernels of an eager prefill and of one replayed decoding step by kind."""
        for candidate in candidates:
            ids = torch.randint(candidate.model.config.vocab_size, (batch, tokens), device=self.device)
            run = partial(candidate.model, ids, use_cache=False, logits_to_keep=1)
            self.kernels(candidate, "prefill", "eager", (batch, tokens), run)
            decoding = Decoding(candidate.model, 1, context)
            graph, _ = decoding.capture()
            decoding.restart()
            self.kernels(candidate, "decode", "graph", (1, context), graph.replay)

    def kernels(
        self, candidate: Candidate, phase: str, mode: str, case: tuple[int, int], run: Callable[[], object]
    ) -> None:
        """Add a row with the kernels of one run, whose batch and tokens are `case`."""
        found, fields = kernel_profile(run), self.fields(phase, candidate, mode, *case)
        fields |= {"what": f"{phase} kernels", "unit": "s", "details": fields["details"] | found}
        self.add(Row(value=found["kernel_seconds"], **fields))

    def attention(self, cases: Iterable[AttentionCase], dtype: torch.dtype) -> None:
        """Time the attention of one layer with every kernel that torch has for it."""
        for case, backend in itertools.product(cases, BACKENDS):
            dims = f"dims {case.query_key} and {case.value}"
            fields = {"what": "attention", "unit": "s", "model": f"{case.heads} heads", "method": backend}
            fields |= {"variant": f"{case.phase}, batch {case.batch} x {case.context} tokens, {dims}"}
            with self.noting(**fields, details=asdict(case)):
                found = attention_profile(case, backend, self.device, dtype)
                self.add(Row(value=found["kernel_seconds"], details=asdict(case) | found, **fields))

    def linear(self, width: int, channels: Iterable[int], tokens: Iterable[int], dtype: torch.dtype) -> None:
        """Time the matrix products of an MLP of every number of channels: up, down, and two of up as one."""
        for count, inner in itertools.product(tokens, channels):
            for fan_in, fan_out in ((width, inner), (inner, width), (width, 2 * inner)):
                timing = linear_timing(count, fan_in, fan_out, self.device, dtype)
                details = {"tokens": count, "fan_in": fan_in, "fan_out": fan_out, "channels": inner}
                details |= asdict(timing) | {"flops": 2 * count * fan_in * fan_out}
                fields = {"model": f"{fan_in} to {fan_out}", "method": "linear", "variant": f"{count} tokens"}
                self.add(Row(what="matrix product", value=timing.seconds, unit="s", details=details, **fields))


@contextmanager
def compiled_layers(model: PreTrainedModel) -> Iterator[None]:
    """torch.compile for each decoder layer, as long as the block runs."""
    try:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        yield
    finally:
        for layer in model.model.layers:
            layer._compiled_call_impl = None


def speed_up(phase: str, details: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, float]:
    """Measured and allowed speed-up against the dense row of the same case, and the share that was reached."""
    case = [details[name] for name in CASE]
    timed_rows = [row for row in rows if row.what == phase and row.method == DENSE and row.value is not None]
    dense = next((row.details for row in timed_rows if [row.details[name] for name in CASE] == case), None)
    if dense is None:
        return {}
    measured = dense["seconds"] / details["seconds"]
    allowed = dense[COST[phase]] / details[COST[phase]]
    return {"speed_up": measured, "allowed": allowed, "reached": measured / allowed}


def describe(row: Row) -> str:
    """A row in one line."""
    name = f"{row.ratio:.0%} removed, " if row.ratio else f"{row.method}, "
    words, details = f"{row.what}, {row.model}, {name}{row.variant}: ", row.details
    if row.value is None:
        return f"{words}no, {details['error']}"
    if row.what in COST:
        rate = details[COST[row.what]] / details["seconds"] / 1e12
        words += f"{row.value:,.0f} ± {row.spread:,.0f} tokens/s, {1e3 * details['seconds']:.3f} ms, "
        words += f"{rate:.3g} {'TFLOP/s' if row.what == 'prefill' else 'TB/s'}"
    else:
        words += f"{1e3 * row.value:.4g} ms" if row.unit == "s" else f"{row.value:.3g}"
    if "compile_seconds" in details:
        words += f", compiled in {details['compile_seconds']:.0f} s"
    if "speed_up" in details:
        words += f", {details['speed_up']:.3f} of {details['allowed']:.3f} times dense ({details['reached']:.3f})"
    if "kinds" in details:
        kinds = details["kinds"].items()
        words += "; " + ", ".join(f"{kind} {1e3 * k['seconds']:.3f} ms in {k['count']}" for kind, k in kinds)
    if "attention_kernels" in details:
        words += f"; {details['attention_kernels']}"
    return words


def advised_multiple(rows: Iterable[Row], layers: int, tolerance: float = 0.02) -> Row | None:
    """The smallest `multiple_of` whose mean speed-up in the sweep lies within `tolerance` of the best.

    Small multiples leave the allocation freer, so a larger one must pay for itself. The mean is geometric, over the
    ratios, phases and batches that every multiple was timed at. None if there is nothing to compare.
    """
    cases: dict[tuple, dict[int, float]] = {}
    model = ""
    for row in rows:
        if row.details.get("layers") == layers and row.ratio and "speed_up" in row.details and plain(row):
            case = (row.what, row.ratio, *(row.details[name] for name in CASE))
            cases.setdefault(case, {})[row.details["multiple_of"]] = row.details["speed_up"]
            model = row.model
    multiples = {multiple for case in cases.values() for multiple in case}
    whole = [case for case in cases.values() if set(case) == multiples]
    if len(multiples) < 2 or not whole:
        return None
    means = {multiple: geometric_mean(case[multiple] for case in whole) for multiple in sorted(multiples)}
    advised = min(multiple for multiple, mean in means.items() if mean >= (1 - tolerance) * max(means.values()))
    details = {
        "mean_speed_up": {str(m): mean for m, mean in means.items()},
        "tolerance": tolerance,
        "cases": len(whole),
    }
    return Row(
        what="advised multiple_of", value=float(advised), unit="", model=model, method="modegpt", details=details
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is timed: a shape, ratios, batches and lengths in tokens; see `modegpt bench throughput --help`."""

    shape: str = "llama-2-7b"
    ratios: Sequence[float] = (0.3, 0.5, 0.2)
    multiple_of: int = 8
    multiples: Sequence[int] = (1, 8, 16, 64, 128)
    layers: int | None = None
    sweep_layers: int = 8
    prompt: int = 2048
    context: int = 512
    batches: Sequence[int] = (4, 1, 16, 64)
    decode_batches: Sequence[int] = (1, 16, 64, 128)
    compiled: bool = True
    like: Sequence[str] = ()
    steps: Sequence[str] = ()
    minutes: float = 10
    dtype: str = "bfloat16"
    seed: int = 0


class Throughput:
    """The steps of one benchmark. Steps that follow `models` look at the first three of them."""

    def __init__(self, plan: Plan, file: Path, device: torch.device) -> None:
        """Raises ModegptError for a shape that is no Llama, an unknown step, or no compressed Llama in a folder."""
        if not all(config_of(plan.shape, count).model_type == "llama" for count in (plan.layers, plan.sweep_layers)):
            raise ModegptError(f"the compressed models here are Llamas, and {plan.shape} is none")
        self.like = {Path(folder).name: _ranked(folder) for folder in plan.like}
        self.plan, self.device, self.dtype = plan, device, getattr(torch, plan.dtype)
        self.modes = ["graph", "eager"] if device.type == "cuda" else ["eager"]
        self.candidates: list[Candidate] = []
        known = [what for what, *_ in self.steps()]
        if unknown := [step for step in plan.steps if not any(_begins(what, step) for what in known)]:
            raise ModegptError(f"no step begins with '{unknown[0]}': they are {', '.join(known)}")
        named = ("shape", "dtype", "seed", "multiple_of", "prompt", "context", "sweep_layers")
        self.bench = Bench({name: getattr(plan, name) for name in named}, file, device, plan.minutes)

    def run(self) -> None:
        """Do what there is time for, write after every row, draw at the end."""
        plan, bench = self.plan, self.bench
        torch.manual_seed(plan.seed)
        torch._dynamo.config.recompile_limit = 64  # layers of several sizes are several programs
        for what, step, needs in self.steps():
            if not plan.steps or any(_begins(what, step) for step in ("models", *plan.steps)):
                bench.attempt(what, step, needs)
        bench.write()
        if any(row.value for row in bench.rows if row.what in COST):
            picture, (prompts, sequences) = bench.file.with_suffix(".png"), (plan.batches[0], plan.decode_batches[0])
            keep(throughput_against_ratio(bench.results(), prefill_batch=prompts, decode_batch=sequences), picture)
            bench.say(f"drawn: {picture}")
        bench.say(f"done: {len(bench.rows)} rows in {bench.file}")

    def steps(self) -> Iterator[tuple[str, Callable[[], None], float]]:
        """Name, call, and the seconds that must be left for it."""
        plan, gpu = self.plan, self.device.type == "cuda"
        first, one = plan.batches[0], plan.decode_batches[0]
        steady = {"budget": 1.5 if gpu else 0.5}
        yield "models", self.build, 0
        yield f"prefill {first}", lambda: self.prefill(self.candidates, first, **steady), 0
        yield f"decode {one}", lambda: self.decode(self.candidates, one, modes=self.modes), 0
        if gpu:
            yield "profile", lambda: self.bench.profile(self.candidates[:3], first, plan.prompt, plan.context), 5
        yield "sweep", self.sweep, 35 if gpu else 0
        for n in plan.decode_batches[1:]:
            yield f"decode {n}", lambda n=n: self.decode(self.candidates[:3], n), 5
        longer = 4 * plan.context
        yield f"decode {one} x {longer}", lambda: self.decode(self.candidates[:3], one, longer), 5
        if gpu:
            yield "attention", self.attention, 8
            yield "linear", self.linear, 8
        for n in plan.batches[1:]:
            yield f"prefill {n}", lambda n=n: self.prefill(self.candidates[:3], n, least=2), 0.4 * n
        compiled = range(3) if gpu and plan.compiled else ()
        call = partial(self.decode, batch=one, modes=["compiled graph"])
        for n in (first, *plan.batches[1:2]) if compiled else ():
            yield (
                f"prefill compiled {n}",
                lambda n=n: self.prefill(self.candidates[:3], n, mode="compiled", **steady),
                20,
            )
        for n in compiled:
            yield f"decode compiled {n}", lambda n=n: call(self.candidates[n : n + 1]), 45
        yield "fused", lambda: self.fuse(first, one, **steady), 15
        for n in compiled:
            yield f"fused decode compiled {n}", lambda n=n: call(self.candidates[n : n + 1]), 45

    def prefill(self, candidates: Iterable[Candidate], batch: int, **options: Any) -> None:
        """Time prompts."""
        self.bench.prefill(candidates, batch, self.plan.prompt, **options)

    def decode(
        self,
        candidates: Iterable[Candidate],
        batch: int,
        context: int | None = None,
        modes: Iterable[str] | None = None,
    ) -> None:
        """Time decoding, in the first mode unless others are named."""
        self.bench.decode(candidates, batch, context or self.plan.context, modes or self.modes[:1])

    def build(self) -> None:
        """The dense model and one for each ratio."""
        plan = self.plan
        dense = random_model(plan.shape, plan.layers, device=self.device, dtype=self.dtype)
        self.candidates.append(Candidate(0.0, 1, dense))
        for ratio in plan.ratios:
            small = compressed_model(dense, ratio, plan.multiple_of)
            self.candidates.append(Candidate(ratio, plan.multiple_of, small))
        shape = FAMILIES["llama"].shape(dense)
        for name, config in self.like.items():
            shared = getattr(config, "shared_ranks", None)
            own = SharedShape.of(shape, dense.config.hidden_size) if shared else shape
            ranks = ranks_like(config, own, dense.config.num_hidden_layers, plan.multiple_of)
            ratio = round(1 - sum(map(own.kept, ranks)) / own.total / len(ranks), 2)
            small = compressed_model(dense, ratio, plan.multiple_of, ranks)
            self.candidates.append(Candidate(ratio, plan.multiple_of, small, name))
        for candidate in self.candidates:
            fields = self.bench.fields("cache error", candidate, "eager", 2, 65) | {"unit": ""}
            fields["details"] |= {"ranks": [asdict(rank) for rank in layer_ranks(candidate.model.config)]}
            self.bench.add(Row(value=cache_error(candidate.model), **fields))

    def fuse(self, batch: int, sequences: int, **options: Any) -> None:
        """The same once more after `fuse`, and a dense model beside them whose layers it can fuse as well."""
        dense = self.candidates[0].model
        whole = Candidate(0.0, 1, compressed_model(dense, 0.0, 1))
        self.candidates = [replace(each, fused=True) for each in (whole, *self.candidates[1:])]
        for candidate in self.candidates:
            candidate.model.fuse()
        self.prefill(self.candidates, batch, **options)
        self.decode(self.candidates, sequences)
        if self.device.type == "cuda":
            self.bench.profile(self.candidates[:3], batch, self.plan.prompt, self.plan.context)

    def sweep(self) -> None:
        """Every multiple at every ratio, on fewer layers; then what they advise."""
        plan, bench = self.plan, self.bench
        dense = random_model(plan.shape, plan.sweep_layers, device=self.device, dtype=self.dtype)
        for multiple, ratio in [(1, 0.0), *itertools.product(plan.multiples, plan.ratios)]:
            where = {"what": "sweep", "unit": "s", "model": plan.shape, "method": "modegpt"}
            with bench.noting(ratio=ratio, variant=str(multiple), **where):
                candidate = [Candidate(ratio, multiple, compressed_model(dense, ratio, multiple) if ratio else dense)]
                self.prefill(candidate, plan.batches[0])
                for batch in plan.decode_batches[:2]:
                    self.decode(candidate, batch)
        if advice := advised_multiple(bench.rows, plan.sweep_layers):
            bench.add(advice)

    def attention(self) -> None:
        """Attention of one layer at several head dims."""
        plan, heads = self.plan, self.candidates[0].model.config.num_attention_heads
        dims = ((128, 128), (104, 104), (96, 96), (90, 90), (90, 89), (64, 64), (96, 64), (104, 96))
        cases = [AttentionCase("prefill", plan.batches[0], heads, plan.prompt, *pair) for pair in dims]
        cases += [AttentionCase("decode", 1, heads, plan.context + ROOM, *pair) for pair in dims]
        self.bench.attention(cases, self.dtype)

    def linear(self) -> None:
        """Matrix products of an MLP at numbers of channels with many and few factors of two."""
        plan, config = self.plan, self.candidates[0].model.config
        exact = 0.7 * config.intermediate_size
        channels = [int(exact) | 1, *(n * round(exact / n) for n in (2, 4, 8, 16, 64, 128, 256))]
        tokens = (plan.batches[0] * plan.prompt, *plan.decode_batches[:2])
        self.bench.linear(config.hidden_size, dict.fromkeys(channels), tokens, self.dtype)


def _begins(what: str, step: str) -> bool:
    """Whether the first words of `what` are `step`."""
    return f"{what} ".startswith(f"{step} ")


def _ranked(folder: str) -> PreTrainedConfig:
    """The config of a compressed Llama in a folder."""
    try:
        config = AutoConfig.from_pretrained(Path(folder).absolute(), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModegptError(f"--like: {folder} holds no model's config.json") from error
    if not isinstance(config, ModeGPTLlamaConfig):
        raise ModegptError(f"--like: {folder} is no Llama that MoDeGPT compressed")
    return config
