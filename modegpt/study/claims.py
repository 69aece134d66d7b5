"""The paper's claims, tried on a model that is at hand: `modegpt study claims [EXPERIMENTS]`.

Each experiment is a list of cases, a case one compressed model and what is measured on it. Every experiment writes a
results file and a picture; an interrupted one goes on where it stopped. `--plan full` is for a GPU, `--plan small` for
two CPU cores.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modegpt.calibrate import collect
from modegpt.console import command_line, out
from modegpt.errors import ModegptError
from modegpt.evaluate import Perplexity, perplexity
from modegpt.evaluate.tasks import PAPER_FIVE, TaskScore, mean_accuracy, zero_shot
from modegpt.families import family_of, learned_positions
from modegpt.layer_statistics import LayerStatistics
from modegpt.machine import Stopwatch, dtype_name
from modegpt.measure import Curves
from modegpt.pipeline import compress, decompose_layer
from modegpt.report import Report
from modegpt.sources import check_length, load_model, load_text, same_source, token_windows
from modegpt.study.experiments import EXPERIMENTS, RATIO, TIME, Case, Plan, named
from modegpt.study.recover import EPOCHS, LENGTH, recover
from modegpt.study.results import DENSE, MEAN, Results, Row, Unfinished, load, perplexity_row, save
from modegpt.style import keep

STEPS = {"mlp": "MLP: Nyström", "query_key": "query-key: CR", "value_output": "value-output: SVD"}


class Laboratory:
    """A dense model, its texts and its calibrations, each made once."""

    def __init__(self, model: str, device: str, plan: Plan) -> None:
        self.name = Path(model).name
        self.dense, self.tokenizer = load_model(model, device=device)
        longest = learned_positions(self.dense.config) or max(plan.lengths)
        lengths = tuple(dict.fromkeys(min(length, longest) for length in plan.lengths))
        self.plan = replace(plan, seq_len=min(plan.seq_len, longest), lengths=lengths)
        self.known: dict[str, tuple[dict[str, Any], dict[str, Perplexity]]] = {}
        self.curves: dict[tuple[Any, ...], Curves] = {}
        self.statistics = lru_cache(maxsize=4)(self._statistics)
        self.held_out = lru_cache(maxsize=None)(self._held_out)

    def tokens(self, text: str, samples: int, seed: int) -> Tensor:
        """Calibration windows, (samples, calibration_length); of a text like "a+b" the halves are a's and b's."""
        parts, length = text.split("+"), self.plan.calibration_length
        each = math.ceil(samples / len(parts))
        drawn = [
            token_windows(load_text(part, "calibration"), self.tokenizer, each, length, seed, what=f"'{part}'")
            for part in parts
        ]
        return torch.cat(drawn)[:samples]

    def _statistics(self, text: str, samples: int, seed: int, attention: bool) -> list[LayerStatistics]:
        return collect(self.dense, self.tokens(text, samples, seed), batch_size=self.plan.batch, attention=attention)

    def _held_out(self, text: str, seq_len: int) -> Tensor:
        """As many tokens whatever the length of a window, or all that the text has."""
        check_length(self.dense, seq_len)
        found = token_windows(load_text(text, "evaluation"), self.tokenizer, None, seq_len, what=f"'{text}'")
        return found[: max(1, self.plan.windows * self.plan.seq_len // seq_len)]

    def measure(self, case: Case) -> list[Row]:
        """The rows of a case; if it cannot be measured, one that says why."""
        where = {"model": self.name, "method": "modegpt" if case.ratio else DENSE, "ratio": case.ratio}
        where |= {"variant": case.variant, "seed": case.seed}
        try:
            if case.tasks:
                return self.accuracies(*self.model(case), where)
            same = replace(case, variant="", calibration=case.calibration or self.plan.calibration)
            same = repr(replace(same, samples=case.samples or self.plan.samples))
            if same not in self.known:  # experiments have cases in common
                self.known[same] = self.perplexities(case)
            details, found = self.known[same]
            return [perplexity_row(value, details, data=named(text), **where) for text, value in found.items()]
        except ModegptError as error:
            what = {"what": "accuracy", "unit": "share"} if case.tasks else {"what": "perplexity", "unit": ""}
            return [Row(value=None, details={"error": str(error)}, **what, **where)]

    def perplexities(self, case: Case) -> tuple[dict[str, Any], dict[str, Perplexity]]:
        """The facts of a case's compression, and its perplexity on every text. Raises ModegptError on a shared text."""
        texts, length = case.texts or (self.plan.text,), case.seq_len or self.plan.seq_len
        for part in (case.calibration or self.plan.calibration).split("+"):
            for text in texts:
                if same_source(part, text):
                    raise ModegptError(f"calibration and evaluation would share the text '{text}'")
        model, details = self.model(case)
        batch = max(1, self.plan.batch * self.plan.seq_len // length)
        return details, {text: perplexity(model, self.held_out(text, length), batch_size=batch) for text in texts}

    def model(self, case: Case) -> tuple[Any, dict[str, Any]]:
        """The model of a case, and the facts of its compression."""
        model, details = self.compressed(case)
        if not case.recover:
            return model, details
        texts = (case.calibration or self.plan.calibration).split("+")
        windows = torch.cat(
            [token_windows(load_text(t, "calibration"), self.tokenizer, None, LENGTH, what=f"'{t}'") for t in texts]
        )
        details = details | {"trained_on": windows.numel(), "epochs": EPOCHS}
        return recover(model if case.ratio else copy.deepcopy(model), windows, case.seed), details

    def compressed(self, case: Case) -> tuple[Any, dict[str, Any]]:
        """The model of a case before any recovery, at ratio 0 the dense one, and the facts of its compression."""
        if not case.ratio:
            return self.dense, {}
        text, samples = case.calibration or self.plan.calibration, case.samples or self.plan.samples
        given = (text, samples, case.seed)
        key = (*given, repr(case.options))  # one measuring serves all ratios
        options = {"batch_size": self.plan.batch, "statistics": None} | case.options
        if self.plan.keep_statistics:
            options["statistics"] = self.statistics(*given, case.options.get("query_key") == "shared")
        if curves := self.curves.get(key):
            options["known"] = {"curves": curves}

        def note(name: str, value: Any) -> None:
            if name == "curves":
                self.curves[key] = value

        model, report = compress(
            copy.deepcopy(self.dense), self.tokens(*given), ratio=case.ratio, on_known=note, **options
        )
        return model, {"calibration": named(text), "samples": samples} | _facts(report)

    def accuracies(self, model: Any, details: dict[str, Any], where: dict[str, Any]) -> list[Row]:
        """Rows of the paper's five tasks and their mean."""
        scores = zero_shot(model, self.tokenizer, PAPER_FIVE, limit=self.plan.questions, batch_size=8 * self.plan.batch)
        return accuracy_rows(scores, details, **where)

    def times(self) -> Iterator[Row]:
        """Seconds of each step at 30 %, the decompositions one by one; calibrating is the dear part."""
        clock, family = Stopwatch(), family_of(self.dense)
        tokens = self.tokens(self.plan.calibration, self.plan.samples, 0)
        collect(self.dense, tokens[:1])  # warm-up
        with clock("calibrate"):
            statistics = collect(self.dense, tokens, batch_size=self.plan.batch)
        _, report = compress(copy.deepcopy(self.dense), statistics, ratio=RATIO)
        steps = Stopwatch()
        for layer, grams, done in zip(family.layers(self.dense), statistics, report.layers, strict=True):
            decompose_layer(grams, family.matrices(layer), done.ranks, rotary=family.rotary, clock=steps)
        clock.seconds |= {words: steps.seconds[step] for step, words in STEPS.items()}
        parts = sum(seconds for step, seconds in clock.seconds.items() if step != "calibrate")
        clock.seconds["new layers"] = max(report.seconds["decompose"] - parts, 0.0)
        found = self.held_out(self.plan.text, self.plan.seq_len)
        with clock("evaluate"):
            perplexity(self.dense, found, batch_size=self.plan.batch)
        about = {"tokens": tokens.numel(), "evaluation_tokens": found.numel()}
        for step, seconds in clock.seconds.items():
            where = {"model": self.name, "method": "modegpt", "ratio": RATIO, "variant": step, "seed": 0}
            yield Row(what="time", value=seconds, unit="s", details=about, **where)


def accuracy_rows(scores: list[TaskScore], details: dict[str, Any], **where: Any) -> list[Row]:
    """A row a task, and one for their mean."""
    same = {"what": "accuracy", "unit": "share", "spread_over": "questions"} | where
    rows = []
    for score in scores:
        names = ("metric", "plain_accuracy", "items", "of", "answers", "gold", "right")
        about = {name: getattr(score, name) for name in names}
        rows.append(
            Row(value=score.accuracy, spread=score.standard_error, data=score.task, details=details | about, **same)
        )
    mean, error = mean_accuracy(scores)
    return [*rows, Row(value=mean, spread=error, data=MEAN, details=details, **same)]


def _facts(report: Report) -> dict[str, Any]:
    plain = report.to_dict()
    names = ("block_ratio", "model_ratio", "parameters_before", "parameters_after", "tokens", "warnings")
    return {"calibration_tokens" if name == "tokens" else name: plain[name] for name in names}


def claims(experiments: Sequence[str], model: str, plan: Plan, device: str, folder: Path) -> None:
    """Try the claims of the paper: for each of these experiments a picture in `folder`, and in results/ the numbers."""
    laboratory = Laboratory(model, device, plan)
    for name in experiments:
        file = experiment(laboratory, name, folder / "results" / f"{laboratory.name}.{name}.json")
        results = load(file)
        if any(row.value is not None for row in results.rows):
            keep(EXPERIMENTS[name].draw(results), folder / f"{file.stem}.png")
        out.print(f"{name}: written to {file}")


def experiment(laboratory: Laboratory, name: str, file: Path) -> Path:
    """Measure the cases of one experiment, or the times; returns the results file, which may be beside `file`."""
    where = laboratory.dense.device
    settings = {"experiment": name, "model": laboratory.name, "dtype": dtype_name(laboratory.dense.dtype)}
    settings |= vars(laboratory.plan)
    unfinished = Unfinished(file, settings, where)
    if name == TIME:
        unfinished.rows = list(laboratory.times())
    done = {(row.what, row.variant, row.ratio, row.seed) for row in unfinished.rows}
    for case in EXPERIMENTS[name].cases(laboratory.plan):
        if case.key in done:
            continue
        rows = laboratory.measure(case)
        unfinished.add(*rows)
        found = ", ".join(row.error or f"{row.data} {row.value:.4g}" for row in rows)
        out.print(f"{name}: {case.variant}, {case.ratio:.1%}, seed {case.seed}: {found}")
    title = EXPERIMENTS[name].title
    file = save(Results.now(name, title, settings, unfinished.rows, where, command_line()), file)
    unfinished.remove()
    return file
