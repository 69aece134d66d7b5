"""The experiments of `modegpt.study.claims`: what each tries, and how much of it under each plan."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from modegpt.pipeline import DESTINATIONS, PLUS, SELECTION_ONLY
from modegpt.study.figures import claims as pictures
from modegpt.study.results import DENSE, Results

RATIO = 0.3
TIME = "time"  # has no cases, its rows are the steps of one compression
SHARED = PLUS | {"query_key": "shared"}
MODULES = {"mlp": "MLP", "query_key": "query-key", "value": "value-output"}


@dataclass(frozen=True)
class Plan:
    """How much is measured: texts, windows, seeds, and the grid of each experiment."""

    calibration: str
    text: str
    texts: tuple[str, ...]
    calibrations: tuple[str, ...]
    samples: int
    calibration_length: int
    windows: int
    seq_len: int
    seeds: int
    ratios: tuple[float, ...]
    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    lengths: tuple[int, ...]
    retention: tuple[tuple[float, str], ...]
    questions: int | None
    batch: int
    keep_statistics: bool = True  # of all layers at once, for many ratios; a large model has no room for them
    drawn_once: bool = False  # `allocation` at ratios other than 30 %


MIXED = "wikitext2:validation+alpaca"
THREE = "wikitext2+c4+alpaca"
PLANS = {
    "full": Plan(
        calibration="wikitext2:validation",
        text="wikitext2",
        texts=("wikitext2", "c4", "wiki-passages"),
        calibrations=("wikitext2:validation", "alpaca", MIXED),
        samples=128,
        calibration_length=512,
        windows=140,
        seq_len=2048,
        seeds=3,
        ratios=(0.1, 0.2, 0.3, 0.4, 0.5),
        sizes=(8, 16, 32, 64, 128, 256),
        shares=(0.025, 0.05, 0.075),
        lengths=(2048, 4096),
        retention=((0.3, "wikitext2:validation"), (0.3, MIXED), (0.25, "alpaca")),
        questions=2400,  # all of four tasks, and a quarter of HellaSwag
        batch=8,
    ),
    "small": Plan(
        calibration="wiki-passages",
        text="wiki-passages",
        texts=("wiki-passages",),
        calibrations=("wiki-passages",),
        samples=32,
        calibration_length=512,
        windows=16,
        seq_len=512,
        seeds=1,
        ratios=(0.3,),
        sizes=(8, 32),
        shares=(0.05,),
        lengths=(512, 1024),
        retention=((0.3, "wiki-passages"),),
        questions=40,
        batch=4,
    ),
    "better": Plan(  # chosen on WikiText-2's validation split, tested once
        calibration=THREE,
        text="wikitext2",
        texts=("wikitext2", "c4", "wiki-passages"),
        calibrations=(THREE, "wikitext2"),
        samples=120,
        calibration_length=2048,
        windows=140,
        seq_len=2048,
        seeds=3,
        ratios=(0.2, 0.3, 0.4, 0.5),
        sizes=(120,),
        shares=(0.05,),
        lengths=(2048,),
        retention=((0.2, THREE), (0.3, THREE), (0.4, THREE), (0.5, THREE)),
        questions=2400,
        batch=8,
    ),
    "paper": Plan(
        calibration="wikitext2",
        text="wikitext2",
        texts=("wikitext2", "c4"),
        calibrations=("wikitext2", "alpaca"),
        samples=128,
        calibration_length=2048,
        windows=10**6,  # all
        seq_len=4096,
        seeds=3,
        ratios=(0.1, 0.2, 0.3, 0.4, 0.5),
        sizes=(32, 128),
        shares=(0.05,),
        lengths=(2048, 4096),
        retention=((0.3, "wikitext2"), (0.25, "alpaca")),
        questions=None,
        batch=4,
        keep_statistics=False,
        drawn_once=True,
    ),
}
PLANS["short"] = replace(  # what decides, on a GPU
    PLANS["full"], ratios=(RATIO,), retention=((RATIO, "wikitext2:validation"), (0.25, "alpaca")), questions=1200
)


@dataclass(frozen=True)
class Case:
    """One compressed model (or, at ratio 0, the dense one), and what to measure on it: perplexities or tasks."""

    variant: str
    ratio: float = RATIO
    seed: int = 0
    calibration: str | None = None
    samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    seq_len: int | None = None
    tasks: bool = False
    recover: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What tells this case from the others of its experiment."""
        return "accuracy" if self.tasks else "perplexity", self.variant, self.ratio, self.seed


def named(text: str) -> str:
    """The name of a text, of a file without its folders; of "a+b" both."""
    return "+".join(Path(part).name for part in text.split("+"))


def windows(plan: Plan) -> Iterator[Case]:
    """Perplexity depends on the text and on the length of the windows."""
    for ratio in (0.0, RATIO):
        for length in plan.lengths:
            yield Case(f"windows of {length}", ratio, texts=plan.texts, seq_len=length)


def allocation(plan: Plan) -> Iterator[Case]:
    """Global against uniform allocation."""
    for ratio in plan.ratios:
        for kind in ("global", "uniform"):
            for seed in range(1 if plan.drawn_once and ratio != RATIO else plan.seeds):
                yield Case(f"{kind} allocation", ratio, seed, options={"allocation": kind} if kind == "uniform" else {})


def resolve(plan: Plan) -> Iterator[Case]:
    """What the MLP gains when W_down is solved for again, and not only selected."""
    for ratio in plan.ratios:
        for seed in range(plan.seeds):
            yield Case("selection and re-solve", ratio, seed)
            yield Case("selection only", ratio, seed, options={"mlp_damping": SELECTION_ONLY})


def size(plan: Plan) -> Iterator[Case]:
    """How much calibration text is enough."""
    for samples in plan.sizes:
        for seed in range(plan.seeds):
            yield Case(f"{samples} samples", seed=seed, samples=samples)


def calibration(plan: Plan) -> Iterator[Case]:
    """Which calibration text is best for which text."""
    for text in plan.calibrations:
        for seed in range(plan.seeds):
            yield Case(f"calibrated on {named(text)}", seed=seed, calibration=text, texts=plan.texts)


def modules(plan: Plan) -> Iterator[Case]:
    """Which module hurts most for each parameter that it loses."""
    yield Case("nothing removed", 0.0)
    for share in plan.shares:
        for module, words in MODULES.items():
            options = {"modules": (module,), "allocation": "uniform", "multiple_of": 2}
            for seed in range(plan.seeds):
                yield Case(f"{words} only", share, seed, options=options)


def better(plan: Plan) -> Iterator[Case]:
    """The paper's method and modegpt-plus, on every text after every calibration text; the latter over draws."""
    yield Case("dense", 0.0, texts=plan.texts)
    for text in plan.calibrations:
        for ratio in plan.ratios:
            where = {"ratio": ratio, "calibration": text, "texts": plan.texts}
            if "+" not in text:
                where["samples"] = plan.samples - 8  # the first megabyte of WikiText-2 holds 113 windows
            yield Case(f"modegpt, {named(text)}", **where)
            for seed in range(plan.seeds if text == plan.calibration else 1):
                yield Case(f"modegpt-plus, {named(text)}", seed=seed, options=PLUS, **where)


def ingredients(plan: Plan) -> Iterator[Case]:
    """What each ingredient of modegpt-plus buys alone."""
    options = {"none": {}, "measured allocation": {"allocation": "measured"}, "half correction": {"correct": 0.5}}
    options |= {"both": PLUS, "own error only": PLUS | {"correct": 1e-9}, "all of the error": PLUS | {"correct": 1.0}}
    for ratio in (RATIO, 0.5):
        for name, chosen in options.items():
            yield Case(name, ratio, options=chosen, texts=plan.texts)


def better_tasks(plan: Plan) -> Iterator[Case]:
    """Zero-shot accuracy of modegpt-plus."""
    yield Case("dense", 0.0, tasks=True)
    for ratio in plan.ratios:
        yield Case("modegpt-plus", ratio, options=PLUS, tasks=True)


def shared(plan: Plan) -> Iterator[Case]:
    """modegpt-plus with query-key pairs dropped, and with one projection that all heads share."""
    yield Case("dense", 0.0, texts=plan.texts)
    for ratio in plan.ratios:
        yield Case("modegpt-plus", ratio, options=PLUS, texts=plan.texts)
        for seed in range(plan.seeds):
            yield Case("shared projection", ratio, seed, options=SHARED, texts=plan.texts)


def shared_tasks(plan: Plan) -> Iterator[Case]:
    """Zero-shot accuracy of modegpt-plus with one projection."""
    yield Case("dense", 0.0, tasks=True)
    for ratio in plan.ratios:
        yield Case("shared projection", ratio, options=SHARED, tasks=True)


def recovery(plan: Plan) -> Iterator[Case]:
    """What a short LoRA fine-tuning gives back, and what it gives a dense model."""
    for tasks in (False, True):
        for method, ratio, options in ((DENSE, 0.0, {}), ("modegpt", RATIO, {}), ("modegpt-plus", RATIO, PLUS)):
            for recover in (False, True):
                variant = f"{method}, LoRA" if recover else method
                texts = () if tasks else plan.texts
                yield Case(variant, ratio, options=options, texts=texts, tasks=tasks, recover=recover)


def destinations(plan: Plan) -> Iterator[Case]:
    """What it costs to fit a destination: the paper's method and modegpt-plus, free and under each one's limits."""
    yield Case("dense", 0.0, texts=plan.texts)
    for ratio in plan.ratios:
        for name, chosen in (("modegpt", {}), ("modegpt-plus", PLUS)):
            for place, limits in ({"free": {}} | DESTINATIONS).items():
                for seed in range(plan.seeds):
                    yield Case(f"{name}, {place}", ratio, seed, options=chosen | limits, texts=plan.texts)


def retention(plan: Plan) -> Iterator[Case]:
    """How much of the zero-shot accuracy is left at 25 and 30 %."""
    yield Case("dense", 0.0, tasks=True)
    for ratio, text in plan.retention:
        yield Case(f"calibrated on {named(text)}", ratio, calibration=text, tasks=True)


@dataclass(frozen=True)
class Experiment:
    """A question: the title of its results, its cases under a plan, and the picture of what came out."""

    title: str
    cases: Callable[[Plan], Iterator[Case]]
    draw: Callable[[Results], Figure]


EXPERIMENTS = {
    "windows": Experiment("Perplexity depends on the text and on the length of the windows", windows, pictures.windows),
    "allocation": Experiment("Global against uniform allocation", allocation, pictures.allocation),
    "resolve": Experiment(
        "What the MLP gains when W_down is solved for again, and not only selected", resolve, pictures.resolve
    ),
    "size": Experiment("How much calibration text is enough", size, pictures.size),
    "calibration": Experiment("Which calibration text is best for which text", calibration, pictures.calibration),
    "modules": Experiment("Which module hurts most for each parameter that it loses", modules, pictures.modules),
    "retention": Experiment("How much of the zero-shot accuracy is left at 25 and 30 %", retention, pictures.retention),
    "better": Experiment("Better than the paper, without gradients", better, pictures.better),
    "ingredients": Experiment("What each ingredient of modegpt-plus buys alone", ingredients, pictures.ingredients),
    "better-tasks": Experiment("Zero-shot accuracy of modegpt-plus", better_tasks, pictures.retention),
    "shared": Experiment("Query-key through one shared projection", shared, pictures.better),
    "shared-tasks": Experiment("Zero-shot accuracy with a shared projection", shared_tasks, pictures.retention),
    "recovery": Experiment("What a short LoRA fine-tuning gives back at 30 %", recovery, pictures.recovery),
    "destinations": Experiment("What fitting a destination costs", destinations, pictures.better),
    TIME: Experiment(
        "Seconds of each step at 30 %, the decompositions one by one; calibrating is the dear part",
        lambda plan: iter(()),
        pictures.time,
    ),
}
