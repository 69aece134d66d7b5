"""`modegpt compress`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modegpt.checks import check_positive
from modegpt.cli import options
from modegpt.cli.facts import write_json
from modegpt.console import err, out
from modegpt.errors import ModegptError
from modegpt.files import check_file
from modegpt.sources import EMBEDDED_MODELS

if TYPE_CHECKING:
    from modegpt.report import Report

MODULES = ("query_key", "value", "mlp")
OURS_ONLY = ("allocation", "epsilon", "multiple_of", "inputs", "modules", "intercept", "ridge", "pair_score")
OURS_ONLY += ("query_key", "correct")
NOT_OF_A_TASK = ("calibration", "samples", "seq_len", "batch_size", "dtype", "seed")
STEPS = ("load", "measure", "calibrate", "decompose", "correct", "compress", "save", "total")


class Allocation(StrEnum):
    """Values of --allocation."""

    GLOBAL = "global"
    UNIFORM = "uniform"
    EQUAL = "equal"
    MEASURED = "measured"


class Destination(StrEnum):
    """Values of --for."""

    STOCK = "stock"
    GGUF = "gguf"


class Inputs(StrEnum):
    """Values of --inputs."""

    DENSE = "dense"
    COMPRESSED = "compressed"


class PairScore(StrEnum):
    """Values of --pair-score."""

    JOINT = "joint"
    SUM = "sum"


class QueryKey(StrEnum):
    """Values of --query-key."""

    SELECT = "select"
    SVD = "svd"
    BEST = "best"
    SHARED = "shared"


MethodOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"One of {', '.join(options.METHODS)}; modegpt is the paper's; modegpt-plus adds measured "
        "allocation and half correction. The options from --allocation to --correct are for these two.",
    ),
]
DestinationOption = Annotated[
    Destination | None,
    typer.Option(
        "--for",
        help="Shrink only what a plain model can hold without padding: stock (MLPs of one width, for a plain Llama or "
        "OPT) or gguf (MLPs of any width, for llama.cpp). Heads stay whole.",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="For fwsvd: MODEL is a fine-tuned classifier, and its Fisher weights come from the texts and labels in a "
        ".jsonl file, its training set.",
    ),
]
AllocationOption = Annotated[
    Allocation,
    typer.Option(
        help="Who gets the budget: global (by Block Influence), uniform, equal (the same ranks in every layer), or "
        "measured."
    ),
]
InputsOption = Annotated[
    Inputs, typer.Option(help="Calibrate on activations of the dense (the paper, we believe) or compressed layers.")
]
ModulesOption = Annotated[
    str, typer.Option(metavar="A,B", help="Which of query_key, value and mlp to shrink; the others stay whole.")
]
QueryKeyOption = Annotated[
    QueryKey,
    typer.Option(
        help="Select query-key dims (the paper) or take their SVD (OPT only); best is svd where it can be; shared puts "
        "one projection in front of all heads (Llama, Qwen2; with modegpt-plus): it loses least."
    ),
]
CorrectOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Share of earlier layers' error that each output matrix corrects; the paper has 0."
    ),
]
InterceptOption = Annotated[
    bool, typer.Option("--intercept", help="Include the bias of the MLP's output in its regression (OPT).")
]


def compress(
    context: typer.Context,
    model: options.ModelArgument,
    ratio: options.RatioOption,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the compressed model goes.")],
    method: MethodOption = "modegpt",
    destination: DestinationOption = None,
    task: TaskOption = None,
    calibration: options.CalibrationOption = "wiki-passages",
    samples: options.SamplesOption = 64,
    seq_len: options.CalibrationLengthOption = 512,
    allocation: AllocationOption = Allocation.GLOBAL,
    epsilon: Annotated[float, typer.Option(help="Temperature of the global allocation; larger is flatter.")] = 0.2,
    multiple_of: options.MultipleOption = 8,
    inputs: InputsOption = Inputs.DENSE,
    modules: ModulesOption = "query_key,value,mlp",
    intercept: InterceptOption = False,
    ridge: Annotated[float, typer.Option(help="Ridge of the leverage scores, relative to the mean diagonal.")] = 1.0,
    pair_score: Annotated[
        PairScore, typer.Option(help="Score a rotary pair as one, or sum up its two dims.")
    ] = PairScore.JOINT,
    query_key: QueryKeyOption = QueryKey.SELECT,
    correct: CorrectOption = 0.0,
    batch_size: options.BatchOption = 4,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    stream: options.StreamOption = False,
    offload_hidden: options.OffloadOption = False,
    overwrite: options.OverwriteOption = False,
    json_file: options.JsonOption = None,
) -> None:
    """Compress MODEL and save it as a Hugging Face folder.

    A first try, offline, a minute or two on a laptop:

        modegpt compress smollm2-135m --ratio 0.3 --out small

    then: modegpt evaluate small, modegpt generate small "The capital of France is"

    On several GPUs: torchrun --nproc-per-node=2 -m modegpt compress ... (each GPU takes its share of the windows).
    """
    given = [name for name in OURS_ONLY if context.get_parameter_source(name).name == "COMMANDLINE"]
    _check_method(method, given, stream)
    _check_destination(destination, method, given)
    if task:
        _check_task(method, context)
    options.check_offload(stream, offload_hidden)
    check_positive("--ridge", ridge)
    check_positive("--epsilon", epsilon)
    how = {"allocation": allocation.value, "epsilon": epsilon, "multiple_of": multiple_of, "inputs": inputs.value}
    how |= {"modules": _modules(modules), "intercept": intercept, "ridge": ridge, "pair_score": pair_score.value}
    how |= {"query_key": query_key.value, "correct": correct}
    if method != "modegpt" or destination:  # a preset, but for what is given
        how = {name: how[name] for name in given}
    check_file("--json", json_file)
    _check_folder(model, folder, overwrite)
    if task:
        from modegpt.cli.compressing_task import compress_task

        _say(*compress_task(model, folder, ratio, task, device, overwrite), folder, json_file)
        return
    text = {"calibration": calibration, "samples": samples, "seq_len": seq_len, "seed": seed}
    where = {"device": device, "dtype": dtype, "batch_size": batch_size}
    on_disk = {"stream": stream, "hidden_on": "cpu" if offload_hidden else None, "overwrite": overwrite}

    from modegpt.cli.compressing import Compression

    report, facts = Compression(model, folder, ratio, method, destination, how, text, **where, **on_disk).run()
    if facts is not None:  # else another rank writes and speaks
        _say(report, facts, folder, json_file)


def _say(report: "Report", facts: dict[str, Any], folder: Path, json_file: Path | None) -> None:
    write_json(json_file, facts)
    out.print(str(report))
    for warning in report.warnings:
        err.print(f"warning: {warning}", style="yellow")
    steps = ", ".join(f"{step} {report.seconds[step]:.1f}" for step in STEPS if step in report.seconds)
    out.print(f"seconds: {steps}; peak memory {report.peak_memory_bytes / 2**30:.2f} GiB; saved in {folder}")


def _check_method(method: str, given: Sequence[str], stream: bool) -> None:
    options.check_methods([method])
    if given and method not in options.OURS:
        raise ModegptError(f"--{given[0].replace('_', '-')} is an option of modegpt, not of {method}")
    if stream and method not in options.OURS:
        raise ModegptError(f"only modegpt streams or runs on several ranks, not {method}")


def _check_task(method: str, context: typer.Context) -> None:
    if method != "fwsvd":
        raise ModegptError(f"--task is an option of fwsvd, not of {method}")
    for name in NOT_OF_A_TASK:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            raise ModegptError(f"--{name.replace('_', '-')} has no meaning with --task: leave it out")


def _check_destination(destination: Destination | None, method: str, given: Sequence[str]) -> None:
    if destination is None:
        return
    if method not in options.OURS:
        raise ModegptError(f"--for is an option of modegpt, not of {method}")
    if "modules" in given:
        raise ModegptError(f"--for {destination} shrinks the MLPs and keeps heads whole: leave --modules out")
    if "query_key" in given:
        raise ModegptError(f"--for {destination} keeps heads whole: leave --query-key out")
    if destination is Destination.STOCK and "allocation" in given:
        raise ModegptError("--for stock gives every layer the same width: leave --allocation out, or say --for gguf")


def _modules(words: str) -> tuple[str, ...]:
    chosen = tuple(name.strip().replace("-", "_") for name in words.split(","))
    if unknown := [name for name in chosen if name not in MODULES]:
        raise ModegptError(f"--modules: unknown '{unknown[0]}', use some of {', '.join(MODULES)}")
    return chosen


def _check_folder(model: str, folder: Path, overwrite: bool) -> None:
    from modegpt.checkpoint.folder import check_output

    own = model not in EMBEDDED_MODELS and Path(model).expanduser().resolve().is_relative_to(folder.resolve())
    if own and overwrite:
        raise ModegptError(f"--out {folder} would replace the model that is read: name another folder")
    check_output(folder, overwrite)
