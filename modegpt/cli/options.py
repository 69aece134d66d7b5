"""The options that several verbs share, and what their values may be.

The names below are those of tables whose import loads torch; a test compares them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from modegpt.checks import check_ratio
from modegpt.errors import ModegptError
from modegpt.files import check_file, check_ours

OURS = ("modegpt", "modegpt-plus")  # these stream, run on several ranks and take the options of `compress`
METHODS = (*OURS, "svd", "svd-llm", "fwsvd", "fwsvd-shifted", "slicegpt", "shortgpt", "magnitude")
PAPER = ("windows", "allocation", "resolve", "size", "calibration", "modules", "retention", "time")  # on its claims
EXPERIMENTS = (*PAPER[:-1], "better", "ingredients", "better-tasks", "shared", "shared-tasks")
EXPERIMENTS += ("recovery", "destinations", PAPER[-1])
PLANS = ("full", "small", "better", "paper", "short")
SHAPES = (
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    "opt-6.7b",
    "smollm2-135m",
    "tiny-llama",
    "tiny-opt",
)

Number = TypeVar("Number", int, float)
TEXT = "wiki-passages (offline), wikitext2[:SPLIT], c4, alpaca, or a .txt or .jsonl file."


def _checked_ratio(ratio: float) -> float:
    check_ratio(ratio)
    return ratio


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded name (smollm2-135m, opt-mini), a folder, or a hub id.")
]
ModelOption = Annotated[str, typer.Option("--model", help="An embedded name, a folder, or a hub id.")]
RatioOption = Annotated[
    float,
    typer.Option(callback=_checked_ratio, help="Share of the parameters of the decoder blocks to remove, in [0, 1)."),
]
RatiosOption = Annotated[str, typer.Option("--ratios", metavar="A,B", help="Ratios to compress at.")]
CalibrationOption = Annotated[str, typer.Option(metavar="NAME", help=f"Text to calibrate on: {TEXT}")]
TextOption = Annotated[str, typer.Option(metavar="NAME", help=f"Text to evaluate on: {TEXT}")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Calibration windows. The paper takes 128 of 2048 tokens.")]
CalibrationLengthOption = Annotated[int, typer.Option(min=2, help="Tokens in a calibration window.")]
WindowsOption = Annotated[
    int, typer.Option(min=0, help="How many windows to evaluate, from the start of the text; 0 takes all.")
]
SeqLenOption = Annotated[
    int, typer.Option(min=2, help="Tokens in a window; perplexities at different lengths cannot be compared.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Calibration windows in a batch.")]
MultipleOption = Annotated[int, typer.Option(min=1, help="Make every rank a multiple of this; 8 suits GPU kernels.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16; auto is bfloat16 where the hardware multiplies it.")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the calibration windows from the text.")]
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Read one layer at a time, for a model larger than memory; can be resumed.")
]
OffloadOption = Annotated[
    bool, typer.Option("--offload-hidden", help="With --stream: keep hidden states in CPU memory.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the results here, with versions and command.")
]
ResultsOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE.json", help="Results file, written after every step; a picture goes beside it."
    ),
]
FiguresOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for the pictures; the numbers go into its results/.")
]
FIGURES = Path("figures")


def numbers(option: str, words: str, example: str, kind: type[Number] = float) -> list[Number]:
    """The numbers of an option such as "0.1,0.3". Raises ModegptError, with the example, for anything else."""
    try:
        return [kind(word) for word in words.split(",")]
    except ValueError as error:
        raise ModegptError(f"{option} is a list such as {example}, got '{words}'") from error


def ratios(words: str) -> list[float]:
    """The ratios of `--ratios`. Raises ModegptError for one out of range, 0 (the dense model) and one named twice."""
    wanted = numbers("--ratios", words, "0.1,0.3")
    for ratio in wanted:
        check_ratio(ratio)
        if ratio == 0:
            raise ModegptError("--ratios: the dense model is always there, leave 0 out")
    if len(set(wanted)) < len(wanted):
        raise ModegptError(f"--ratios: one is named twice in '{words}'")
    return wanted


def methods() -> list[str]:
    """The known methods. A program that adds one of its own has imported the table, and then that counts."""
    loaded = sys.modules.get("modegpt.methods")
    return list(loaded.METHODS if loaded else METHODS)


def check_methods(names: Sequence[str]) -> None:
    """Raise ModegptError, which lists the known ones, for an unknown method or one named twice."""
    for name in names:
        if name not in methods():
            raise ModegptError(f"unknown method '{name}': the methods are {', '.join(methods())}")
    if len(set(names)) < len(names):
        raise ModegptError("a method is named twice")


def check_offload(stream: bool, offload_hidden: bool) -> None:
    """Raise ModegptError for --offload-hidden without --stream."""
    if offload_hidden and not stream:
        raise ModegptError("--offload-hidden goes with --stream")


def check_results_file(file: Path, beside: Sequence[str] = (), overwrite: bool = False) -> None:
    """Raise ModegptError, before any work, if results cannot go to `file` or would replace what is not ours.

    `beside` are the suffixes of what is written next to it.
    """
    if file.suffix != ".json":
        raise ModegptError(f"--out {file}: give a name that ends in .json")
    check_file("--out", file)
    check_ours([file.with_suffix(suffix) for suffix in beside], overwrite)
    if file.exists():
        from modegpt.study.results import load

        load(file)
