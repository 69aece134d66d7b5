"""The work of `modegpt evaluate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from modegpt.checkpoint.folder import add_evaluation
from modegpt.cli.facts import interactive, provenance, report_of, sha256
from modegpt.evaluate import perplexity
from modegpt.evaluate.tasks import TaskScore, mean_accuracy, task_names, zero_shot
from modegpt.machine import Stopwatch, dtype_name, peak_memory_bytes
from modegpt.report import count_parameters
from modegpt.sources import EMBEDDED_MODELS, check_length, load_model, load_text, token_windows


class Evaluation:
    """Measures one model: `found` is for a results file; `line`, `table` and `warnings` are for the screen."""

    def __init__(self, model: str, tasks: str | None, text: str | None, device: str, dtype: str) -> None:
        self.model, self.text = model, text
        self.names = task_names(tasks) if tasks is not None else []
        self.passage = load_text(text, "evaluation") if text is not None else ""
        self.folder = None if model in EMBEDDED_MODELS else Path(model).expanduser()
        self.report = report_of(self.folder) if self.folder else {}
        self.clock = Stopwatch()
        with self.clock("load"):
            self.network, self.tokenizer = load_model(model, dtype=dtype, device=device)
        self.found: dict[str, Any] = {"model": model}
        self.warnings: list[str] = []
        self.line, self.table = "", None

    def perplexity(self, windows: int, seq_len: int, batch_size: int) -> None:
        """Measure perplexity, and note it in the card of a compressed model."""
        if self.report.get("calibration_sha256") == sha256(self.passage):
            self.warnings.append(f"'{self.model}' was calibrated on this text, so its perplexity here flatters it")
        check_length(self.network, seq_len)
        what = f"evaluation text '{self.text}'"
        tokens = token_windows(self.passage, self.tokenizer, windows or None, seq_len, what=what)
        with self.clock("evaluate"):
            result = perplexity(self.network, tokens, batch_size=batch_size, progress=interactive())
        self.found |= {"text": self.text} | asdict(result)
        dtype, spread = dtype_name(self.network.dtype), ""
        if result.windows > 1:
            spread = f" ± {result.standard_error:.3f}"
        self.line = (
            f"perplexity {result.perplexity:.3f}{spread} on {self.text}: {result.windows} windows of "
            f"{result.seq_len} tokens{', BOS first' if result.bos else ''}; "
            f"{count_parameters(self.network) / 1e6:.1f} M parameters, {dtype}, {self.clock.seconds['evaluate']:.1f} s"
        )
        row = {"text": Path(str(self.text)).name, "dtype": dtype, "device": provenance(self.network.device)["device"]}
        if self.folder and add_evaluation(self.folder, row | asdict(result)):
            self.line += f"\nnoted in {Path(self.model) / 'README.md'}"

    def accuracies(self, limit: int | None, batch_size: int) -> None:
        """Measure zero-shot accuracies."""
        if "boolq" in self.names and self.report.get("calibration") == "wiki-passages":
            self.warnings.append("wiki-passages, the calibration text, are the passages of boolq")
        with self.clock("tasks"):
            options = {"limit": limit, "batch_size": batch_size, "progress": interactive()}
            scores = zero_shot(self.network, self.tokenizer, self.names, **options)
        mean, error = mean_accuracy(scores)
        self.found |= {"tasks": [asdict(score) for score in scores], "limit": limit}
        self.found |= {"mean_accuracy": mean, "mean_standard_error": error}
        self.table = accuracy_table(scores)

    def facts(self) -> dict[str, Any]:
        """All that was measured, and on what."""
        facts = {"parameters": count_parameters(self.network), "dtype": dtype_name(self.network.dtype), "seed": None}
        facts |= {"seconds": dict(self.clock.seconds), "peak_memory_bytes": peak_memory_bytes()}
        return self.found | facts | provenance(self.network.device)


def accuracy_table(scores: list[TaskScore]) -> Table:
    """A line a task; the last two columns show a model that always says the same."""

    def shares(values: list[float]) -> str:
        return " ".join(f"{100 * value:.0f}" for value in values)

    table = Table("task", "accuracy (%)", "", "questions", "says (%)", "right (%)", box=None, header_style="bold")
    for score in scores:
        accuracy = f"{100 * score.accuracy:.2f} ± {100 * score.standard_error:.2f}"
        asked = f"{score.items} of {score.of}" if score.items < score.of else f"{score.items}"
        table.add_row(score.task, accuracy, score.metric, asked, shares(score.answers), shares(score.gold))
    if len(scores) > 1:
        mean, error = mean_accuracy(scores)
        table.add_row("mean", f"{100 * mean:.2f} ± {100 * error:.2f}")
    return table
