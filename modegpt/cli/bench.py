"""`modegpt bench compress | literal | precision | scaling | stream | throughput | llama-cpp`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modegpt.checks import check_ratio
from modegpt.cli import options
from modegpt.errors import ModegptError

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    help="Measure speed and memory on published shapes with random weights: no download, results as a file.",
    add_completion=False,
)
ShapesOption = Annotated[str, typer.Option(metavar="A,B", help=f"Some of {', '.join(options.SHAPES)}.")]
WindowsOption = Annotated[int, typer.Option(min=1, help="Windows to evaluate the real model on, 2048 tokens each.")]
LayersOption = Annotated[int | None, typer.Option(min=1, help="Layers of the model, if not as many as the shape has.")]
RealModelsOption = Annotated[
    str, typer.Option("--model", metavar="A,B", help="Real models to compare perplexities on; 'none' leaves this out.")
]


@app.command()
def compress(
    file: options.ResultsOption,
    shapes: ShapesOption = "llama-2-7b",
    ratio: options.RatioOption = 0.3,
    samples: options.SamplesOption = 128,
    length: options.CalibrationLengthOption = 2048,
    batch_size: options.BatchOption = 8,
    walks: Annotated[
        str, typer.Option(metavar="1,2", help="Walks over the text: 1 keeps all statistics, 2 one layer's.")
    ] = "1",
    plus: Annotated[bool, typer.Option("--plus", help="Time modegpt-plus as well.")] = False,
    stream: options.StreamOption = False,
    offload_hidden: options.OffloadOption = False,
    layers: LayersOption = None,
    device: options.DeviceOption = "auto",
) -> None:
    """Time whole compressions, from the first calibration token to the compressed model, with peak memory.

    On two CPU cores, in seconds:

        modegpt bench compress --shapes tiny-llama --samples 8 --length 128 --out tiny.json
    """
    options.check_offload(stream, offload_hidden)
    variants: dict[str, dict[str, Any]] = {
        f"{number} walk{'s' * (number > 1)}": {"walks": number} for number in _numbers("--walks", walks, (1, 2))
    }
    if stream:
        name = "streamed, hidden states on the CPU" if offload_hidden else "streamed"
        variants = {name: {"stream": True, "hidden_on": "cpu" if offload_hidden else None}}
    options.check_results_file(file, (".png",))
    where = _device(device)

    from modegpt.pipeline import PLUS
    from modegpt.study.bench import jobs

    if plus:
        variants["modegpt-plus"] = PLUS | variants[next(iter(variants))]
    sizes = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size}
    jobs.compress(file, where, shapes.split(","), layers, variants, sizes)


@app.command()
def literal(
    file: options.ResultsOption,
    shapes: ShapesOption = "llama-2-7b",
    ratio: options.RatioOption = 0.3,
    samples: options.SamplesOption = 128,
    length: options.CalibrationLengthOption = 2048,
    batch_size: options.BatchOption = 8,
    device: options.DeviceOption = "auto",
) -> None:
    """Time the paper's steps, taken literally, and this kit's, on one layer of a shape.

    For example:

        modegpt bench literal --shapes tiny-llama --samples 8 --length 128 --out literal.json
    """
    options.check_results_file(file, (".png",))
    where = _device(device)

    from modegpt.study.bench import jobs

    sizes = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size}
    jobs.literal(file, where, shapes.split(","), sizes)


@app.command()
def precision(
    file: options.ResultsOption,
    model: options.ModelOption = "smollm2-135m",
    ratio: options.RatioOption = 0.3,
    calibration: options.CalibrationOption = "wiki-passages",
    text: options.TextOption = "wiki-passages",
    samples: options.SamplesOption = 64,
    length: options.CalibrationLengthOption = 512,
    windows: WindowsOption = 24,
    device: options.DeviceOption = "auto",
) -> None:
    """Compare Gram matrices, kept channels and perplexity with those of a run in float64.

    For example:

        modegpt bench precision --model opt-mini --samples 8 --windows 2 --out precision.json
    """
    options.check_results_file(file)
    where = _device(device)

    from modegpt.study.bench import jobs

    sizes = {"ratio": ratio, "samples": samples, "length": length, "windows": windows}
    jobs.precision(file, where, model, {"calibration": calibration, "text": text}, sizes)


@app.command()
def scaling(
    file: options.ResultsOption,
    shapes: ShapesOption = "llama-2-7b,llama-2-13b",
    ranks: Annotated[str, typer.Option(metavar="1,2", help="Numbers of processes, one GPU each.")] = "1,2",
    models: RealModelsOption = "smollm2-135m",
    ratio: options.RatioOption = 0.3,
    samples: options.SamplesOption = 128,
    length: options.CalibrationLengthOption = 2048,
    batch_size: options.BatchOption = 8,
    windows: WindowsOption = 24,
    device: options.DeviceOption = "auto",
) -> None:
    """Time the same compression on one and on several GPUs of this host, in one run, and compare the results.

    Without a GPU, each rank is a process:

        modegpt bench scaling --shapes tiny-llama --model none --samples 8 --length 128 --out scaling.json

    For several hosts, start torchrun on each with --rdzv-endpoint: see docs/gpus.md.
    """
    wanted = _numbers("--ranks", ranks, range(1, 1025))
    options.check_results_file(file)
    where = _device(device)

    from modegpt.study.bench import jobs

    sizes = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size}
    real = [] if models == "none" else models.split(",")
    jobs.scaling(file, where, shapes.split(","), wanted, real, windows, sizes)


@app.command()
def stream(
    file: options.ResultsOption,
    shape: Annotated[str, typer.Option(help="Published shape to build.")] = "llama-2-70b",
    layers: LayersOption = None,
    ranks: Annotated[int, typer.Option(min=1, help="Number of processes, one GPU each.")] = 1,
    kill_after: Annotated[
        int | None, typer.Option(min=1, help="End all processes when so many layers are written, and start again.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The dense model; made if it is not there, and then it stays.")
    ] = None,
    folder: Annotated[Path, typer.Option("--work", metavar="DIR", help="Where the result goes for a while.")] = Path(),
    make_only: Annotated[bool, typer.Option("--make-only", help="Make the dense model, and stop.")] = False,
    ratio: options.RatioOption = 0.3,
    samples: options.SamplesOption = 128,
    length: options.CalibrationLengthOption = 2048,
    batch_size: options.BatchOption = 4,
    device: options.DeviceOption = "auto",
) -> None:
    """Compress a model larger than memory from disk to disk, load the result and run it for a few tokens.

    The two folders take twice the parameters in bytes, and the share of that which stays. On two CPU cores:

        modegpt bench stream --shape tiny-llama --samples 8 --length 128 --ranks 2 --kill-after 1 --out stream.json
    """
    options.check_results_file(file)
    where = _device(device)

    from modegpt.study.bench import jobs

    places = {"source": source or folder / f"{shape}-dense", "target": folder / f"{shape}-small"}
    if make_only:
        jobs.make(places["source"], where, shape, layers)
        return
    sizes = {"ratio": ratio, "samples": samples, "length": length, "batch_size": batch_size}
    jobs.stream(file, where, shape, layers, places, ranks, kill_after, sizes)


@app.command()
def throughput(
    file: options.ResultsOption,
    shape: Annotated[str, typer.Option(help="Published shape to build.")] = "llama-2-7b",
    ratios: options.RatiosOption = "0.3,0.5,0.2",
    multiple_of: options.MultipleOption = 8,
    multiples: Annotated[str, typer.Option(metavar="A,B", help="Multiples that the sweep compares.")] = "1,8,16,64,128",
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the models, if not as many as the shape has.")
    ] = None,
    sweep_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the models in the sweep, 8 if the shape has so many.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of a prompt in prefill.")] = 2048,
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache when decoding starts.")] = 512,
    batches: Annotated[str, typer.Option(metavar="A,B", help="Batch sizes of prefill.")] = "4,1,16,64",
    decode_batches: Annotated[str, typer.Option(metavar="A,B", help="Batch sizes of decoding.")] = "1,16,64,128",
    compiled: Annotated[bool, typer.Option(help="Time the models with torch.compile as well.")] = True,
    like: Annotated[
        str, typer.Option(metavar="DIR,DIR", help="Compressed Llamas, of any size, whose shares per layer are timed.")
    ] = "",
    steps: Annotated[str, typer.Option(metavar="A,B", help="Only the steps that begin with these words.")] = "",
    minutes: Annotated[float, typer.Option(min=0, help="Start no step that would end later than this.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Draws weights and tokens.")] = 0,
) -> None:
    """Time prefill and decoding of dense and compressed models with random weights, beside what is possible.

    Without a GPU, in a minute:

        modegpt bench throughput --shape tiny-llama --device cpu --dtype float32 --minutes 1 --out throughput.json
    """
    wanted = options.numbers("--ratios", ratios, "0.2,0.3")
    for ratio in wanted:
        check_ratio(ratio)
    sizes = {"multiples": options.numbers("--multiples", multiples, "8,16", int)}
    sizes |= {"batches": options.numbers("--batches", batches, "1,4", int)}
    sizes |= {"decode_batches": options.numbers("--decode-batches", decode_batches, "1,64", int)}
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ModegptError(f"--dtype is bfloat16, float16 or float32, got {dtype}")
    options.check_results_file(file, (".png",))

    from modegpt.study.bench.shapes import config_of
    from modegpt.study.bench.throughput import Plan, Throughput

    plan = Plan(
        shape=shape,
        ratios=wanted,
        multiple_of=multiple_of,
        layers=layers,
        sweep_layers=sweep_layers or min(8, config_of(shape).num_hidden_layers),
        prompt=prompt,
        context=context,
        compiled=compiled,
        like=like.split(",") if like else (),
        steps=steps.split(",") if steps else (),
        minutes=minutes,
        dtype=dtype,
        seed=seed,
        **sizes,
    )
    Throughput(plan, file, _gpu(device)).run()


@app.command()
def llama_cpp(
    file: options.ResultsOption,
    model: options.ModelOption = "smollm2-135m",
    ratio: options.RatioOption = 0.3,
    calibration: options.CalibrationOption = "wiki-passages",
    samples: options.SamplesOption = 64,
    length: options.CalibrationLengthOption = 512,
    kinds: Annotated[str, typer.Option("--types", metavar="A,B", help="Some of f32, f16, q8_0.")] = "f32,f16,q8_0",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode for the speed.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each model; the median counts.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of llama.cpp.")] = 2,
) -> None:
    """Compress for stock and gguf, and run both and the dense model in llama.cpp: size, speed, greedy text.

    On an idle machine, with xllamacpp installed:

        modegpt bench llama-cpp --samples 16 --types q8_0 --out llama-cpp.json
    """
    chosen = kinds.split(",")
    if unknown := [kind for kind in chosen if kind not in ("f32", "f16", "q8_0")]:
        raise ModegptError(f"--types: unknown '{unknown[0]}', use some of f32, f16, q8_0")
    options.check_results_file(file)

    from modegpt.study.bench.llama_cpp import bench

    text = {"calibration": calibration, "samples": samples, "length": length}
    bench(file, model, ratio, text, chosen, tokens=tokens, repeats=repeats, threads=threads)


def _device(name: str) -> "torch.device":
    from modegpt.sources import find_device

    return find_device(name)


def _gpu(name: str) -> "torch.device":
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModegptError("no GPU is found: add --device cpu --shape tiny-llama to try it")
    return _device(name)


def _numbers(option: str, words: str, allowed: Iterable[int]) -> list[int]:
    known = list(allowed)
    numbers = [int(word) if word.isascii() and word.isdigit() else -1 for word in words.split(",")]
    if not set(numbers) <= set(known):
        raise ModegptError(f"{option} takes numbers from {known[0]} to {known[-1]}, got '{words}'")
    return numbers
