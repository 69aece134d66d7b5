"""The work of `modegpt compress`: a model and a text by name, and in the end a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from modegpt import parallel
from modegpt.checkpoint.card import source_of
from modegpt.checkpoint.folder import save_checkpoint
from modegpt.cli.facts import interactive, provenance, sha256, without_places
from modegpt.cli.options import OURS
from modegpt.console import out
from modegpt.errors import ModegptError
from modegpt.machine import Stopwatch, dtype_name, peak_memory_bytes
from modegpt.methods import method_named
from modegpt.pipeline import DESTINATIONS, PLUS, check_options, compress
from modegpt.report import Report
from modegpt.sources import (
    check_length,
    find_device,
    find_dtype,
    load_model,
    load_text,
    load_tokenizer,
    model_folder,
    token_windows,
)
from modegpt.streaming import advice_on_memory, compress_folder, inspect_folder, outline


@dataclass(frozen=True)
class Compression:
    """A command line of `modegpt compress`. `how` goes to `compress`, `text` says what it calibrates on.

    `destination` is None or one of `pipeline.DESTINATIONS`, whose options count unless `how` has others.
    """

    model: str
    folder: Path
    ratio: float
    method: str
    destination: str | None
    how: Mapping[str, Any]
    text: Mapping[str, Any]
    device: str
    dtype: str
    batch_size: int
    stream: bool
    hidden_on: str | None
    overwrite: bool

    def run(self) -> tuple[Report, dict[str, Any] | None]:
        """Compress and save. Returns the report, and the facts for a results file; None on all ranks but the first."""
        clock = Stopwatch()
        with clock("total"), parallel.ranks(find_device(self.device)) as where:
            out.quiet = parallel.rank() > 0  # every rank would say the same
            if not self._ours and parallel.size() > 1:
                raise ModegptError(f"only modegpt streams or runs on several ranks, not {self.method}")
            report, facts = self._compress_and_save(where, find_dtype(self.dtype, where), clock)
        if out.quiet:
            return report, None
        report.seconds |= clock.seconds
        report.peak_memory_bytes = peak_memory_bytes()
        return report, facts | report.to_dict()

    @property
    def _ours(self) -> bool:
        return self.method in OURS

    @property
    def _options(self) -> dict[str, Any]:
        plus = PLUS if self.method == "modegpt-plus" else {}
        return plus | DESTINATIONS.get(self.destination, {}) | dict(self.how)

    def _compress_and_save(
        self, where: torch.device, precision: torch.dtype, clock: Stopwatch
    ) -> tuple[Report, dict[str, Any]]:
        with clock("load"):
            passage = load_text(self.text["calibration"], "calibration")
            dense, tokenizer = self._load(where, precision)
            what = f"calibration text '{self.text['calibration']}'"
            sizes = (self.text["samples"], self.text["seq_len"], self.text["seed"])
            tokens = token_windows(passage, tokenizer, *sizes, what=what)
        facts = source_of(self.model) | {"model": self.model} | dict(self.text) | provenance(where)
        facts |= {"calibration": _absolute(self.text["calibration"]), "calibration_sha256": sha256(passage)}
        facts["dtype"] = dtype_name(precision)
        out.print(
            f"{self.model} on {where} in {facts['dtype']}: {tokens.numel():,} tokens of {self.text['calibration']}"
        )
        with advice_on_memory(self.model, where, precision, tokens, self.batch_size, self.stream):
            if self.stream:
                return self._stream(tokens, tokenizer, where, precision, facts), facts
            small, report = self._small(dense, tokens, clock)
        if parallel.rank() == 0:
            with clock("save"):
                travelling = without_places(facts | report.to_dict())
                save_checkpoint(self.folder, small, tokenizer, travelling, self.overwrite)
        return report, facts

    def _load(self, where: torch.device, precision: torch.dtype) -> tuple[Any, Any]:
        empty = outline(self.model, precision)  # refused before weights are read or a text is tokenized
        check_length(empty, self.text["seq_len"])
        if self._ours:
            check_options(empty, self.ratio, **self._options)
        if self.stream:
            inspect_folder(model_folder(self.model), precision)
            dense, tokenizer = None, load_tokenizer(self.model)
        else:
            with advice_on_memory(self.model, where, precision):
                dense, tokenizer = load_model(self.model, dtype=precision, device=str(where))
        check_destination(self.destination, empty.config, tokenizer)
        return dense, tokenizer

    def _small(self, dense: Any, tokens: Tensor, clock: Stopwatch) -> tuple[Any, Report]:
        walking = {"batch_size": self.batch_size, "progress": interactive()}
        if self._ours:
            return compress(dense, tokens, ratio=self.ratio, **self._options, **walking)
        method = method_named(self.method)
        with clock("measure"):
            measured = method.measure(dense, tokens, **walking)
        small, report = method.compress(dense, measured, self.ratio)
        if method.calibrated:
            report.tokens = tokens.numel()
        return small, report

    def _stream(
        self, tokens: Tensor, tokenizer: Any, where: torch.device, precision: torch.dtype, facts: Mapping[str, Any]
    ) -> Report:
        options = {"batch_size": self.batch_size, "progress": interactive(), "ratio": self.ratio} | self._options
        return compress_folder(
            model_folder(self.model),
            self.folder,
            tokens,
            tokenizer,
            device=where,
            dtype=precision,
            facts=without_places(facts),
            hidden_on=self.hidden_on,
            overwrite=self.overwrite,
            **options,
        )


def check_destination(destination: str | None, config: PreTrainedConfig, tokenizer: Any) -> None:
    """Raise ModegptError, before any work, if no compression of this model can go there."""
    if destination == "stock" and config.model_type == "qwen2":  # with a window, or it would have become a Llama
        raise ModegptError("a compressed Qwen2 with a window has biases that a plain one lacks: leave --for out")
    if destination == "gguf":
        from modegpt.checkpoint.gguf_file import check_shapes, vocabulary

        check_shapes(config)
        if tokenizer is not None:
            vocabulary(tokenizer, config.vocab_size)


def _absolute(text: str) -> str:
    """The name of a text, a file's with its folder: another run may start elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.is_file() else text
