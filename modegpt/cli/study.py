"""`modegpt study ...`: what is measured, and the files that hold it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from modegpt.cli import options
from modegpt.console import err, out
from modegpt.errors import ModegptError
from modegpt.files import check_folder

app = typer.Typer(
    help="Measure MoDeGPT and its rivals, test the paper's claims, reproduce everything, check results files.",
    add_completion=False,
)
PROFILES = ("cpu", "gpu", "paper")
ARCHITECTURES = ("opt", "qwen2", "qwen3")
FWSVD_PARTS = ("ranks", "compact", "direct", "vary")
ProfileOption = Annotated[str, typer.Option(help=f"{', '.join(PROFILES)}; the report says what it measures.")]
FolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Default: figures/reproduction/PROFILE.")
]
ExperimentsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[EXPERIMENTS]",
        help=f"Some of {', '.join(options.EXPERIMENTS)}; without a name, those on the paper's claims.",
    ),
]


@app.command()
def reproduce(
    profile: ProfileOption = "cpu",
    model: Annotated[str | None, typer.Option(help="For the profile paper: a hub id or a local folder.")] = None,
    folder: FolderOption = None,
) -> None:
    """Measure all that the profile lists and write report.html and report.json.

    An interrupted run goes on where it stopped. A failing step is marked in the report; the exit code is 2 if a step
    failed that the profile cannot do without.

        modegpt study reproduce --profile cpu
    """
    _check_profile(profile, folder)
    if (profile == "paper") != bool(model):
        raise ModegptError("--model is for the profile paper, which needs it: a hub id or a local folder")

    from modegpt.study import reproduce

    reproduce.run(profile, model, folder)


@app.command()
def verify(profile: ProfileOption = "cpu", folder: FolderOption = None) -> None:
    """Compare a finished run with the expected values; fails on a difference beyond its tolerance.

    For example:

        modegpt study verify --profile cpu
    """
    _check_profile(profile, folder)

    from modegpt.study import reproduce

    reproduce.verify(profile, folder)


@app.command()
def expect(profile: ProfileOption = "cpu", folder: FolderOption = None) -> None:
    """Make the numbers of a finished run the expected values, in figures/expected.PROFILE.json.

    For example:

        modegpt study expect --profile cpu
    """
    _check_profile(profile, folder)

    from modegpt.study import reproduce

    reproduce.expect(profile, folder)


@app.command()
def ratios(
    model: options.ModelOption = "smollm2-135m",
    wanted: options.RatiosOption = "0.1,0.2,0.3,0.4,0.5",
    calibration: options.CalibrationOption = "wiki-passages",
    text: options.TextOption = "wiki-passages",
    samples: options.SamplesOption = 64,
    calibration_length: options.CalibrationLengthOption = 512,
    windows: options.WindowsOption = 24,
    multiple_of: options.MultipleOption = 8,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = 0,
    folder: options.FiguresOption = options.FIGURES,
) -> None:
    """Compress MODEL with MoDeGPT at every ratio and measure perplexity, parameters, size and time.

    One calibration serves all ratios. An interrupted run goes on where it stopped.

        modegpt study ratios --model opt-mini --ratios 0.2,0.4 --windows 4 --out pictures
    """
    todo = options.ratios(wanted)
    check_folder("--out", folder)

    from modegpt.study.ratios import ratios

    texts = {"calibration": calibration, "text": text, "windows": windows, "seed": seed}
    texts |= {"samples": samples, "calibration_length": calibration_length}
    ratios(model, todo, multiple_of=multiple_of, device=device, folder=folder, **texts)


@app.command()
def claims(
    experiments: ExperimentsArgument = None,
    model: options.ModelOption = "smollm2-135m",
    plan_name: Annotated[str, typer.Option("--plan", help=f"How much to do: {' or '.join(options.PLANS)}.")] = "full",
    questions: Annotated[int | None, typer.Option(min=1, help="How many questions of each zero-shot task.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Draws of the calibration text, if not the plan's.")] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Numbers of samples to try, if not the plan's.")
    ] = None,
    device: options.DeviceOption = "auto",
    folder: options.FiguresOption = options.FIGURES,
) -> None:
    """Test the claims of the paper and write what came out.

    The plan full is for a GPU, short for one with little time, small for two CPU cores, paper follows the paper's own
    protocol, and better is for the experiments on modegpt-plus (better, ingredients, shared, recovery and others).

        modegpt study claims allocation modules --plan small --out pictures
    """
    chosen = experiments or list(options.PAPER)
    for name in chosen:
        if name not in options.EXPERIMENTS:
            raise ModegptError(f"unknown experiment '{name}': use some of {', '.join(options.EXPERIMENTS)}")
    if plan_name not in options.PLANS:
        raise ModegptError(f"unknown plan '{plan_name}': use {' or '.join(options.PLANS)}")
    counts = tuple(options.numbers("--sizes", sizes, "8,32", int)) if sizes else None
    check_folder("--out", folder)

    from modegpt.study.claims import claims
    from modegpt.study.experiments import PLANS

    plan = PLANS[plan_name]
    plan = replace(plan, questions=questions or plan.questions, seeds=seeds or plan.seeds, sizes=counts or plan.sizes)
    claims(chosen, model, plan, device, folder)


@app.command()
def overlap(folder: options.FiguresOption = options.FIGURES) -> None:
    """Count shared runs of 13 words between every calibration text and every evaluation text.

    For example:

        modegpt study overlap --out pictures
    """
    check_folder("--out", folder)

    from modegpt.study.overlap import report

    report(folder)


@app.command()
def fwsvd_task(
    models: Annotated[str, typer.Option(help="Embedded names, folders or hub ids.")] = "opt-mini",
    tasks: Annotated[
        str, typer.Option(help="Two or more of: mmlu-groups, math-subjects, ..., or .jsonl files of text and label.")
    ] = "mmlu-groups,math-subjects,wikihow-topics",
    parts: Annotated[str, typer.Option(help="Some of ranks, compact, direct, vary.")] = "ranks,compact,direct",
    seeds: Annotated[str, typer.Option(help="Seeds; each draws head and order of examples.")] = "0,1,2,3,4",
    shares: Annotated[str, typer.Option(help="Shares of the full rank to keep.")] = "0.1,0.2,0.33,0.4,0.45",
    again: Annotated[str, typer.Option(help="Those of the shares that are fine-tuned a second time.")] = "0.33",
    train: Annotated[int, typer.Option(min=2, help="Examples to train on, at most.")] = 1280,
    test: Annotated[int, typer.Option(min=2, help="Examples to test on, at most.")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each fine-tuning.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate at the start; it decays to zero.")] = 5e-5,
    device: options.DeviceOption = "auto",
    known: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results files whose rows are not measured again, such as figures/results."),
    ] = None,
    folder: options.FiguresOption = options.FIGURES,
) -> None:
    """Test FWSVD's claims on classification tasks: against SVD, on a compact model, against a small model.

    The part vary, which has to be asked for, changes one choice at a time, at the shares in --again. Several processes
    may share the work: start the same command several times.

        modegpt study fwsvd-task --seeds 0 --parts ranks --out pictures
    """
    wanted, refit = options.numbers("--shares", shares, "0.2,0.33"), options.numbers("--again", again, "0.33")
    if not set(refit) <= set(wanted):
        raise ModegptError(f"--again {again}: these shares must be among --shares {shares}")
    chosen = {name: text.split(",") for name, text in (("models", models), ("tasks", tasks), ("parts", parts))}
    for name in chosen["parts"]:
        if name not in FWSVD_PARTS:
            raise ModegptError(f"unknown part '{name}': use some of {', '.join(FWSVD_PARTS)}")
    if len(set(chosen["tasks"])) < 2:
        raise ModegptError(f"--tasks {tasks}: name two or more, since Fisher weights of another task are a control")
    if known and not any(known.glob("fwsvd.*.json")):
        raise ModegptError(f"--known {known}: no results of this study are there")
    drawn = options.numbers("--seeds", seeds, "0,1", int)
    check_folder("--out", folder)

    from modegpt.study.fwsvd_task import Plan, fwsvd_task

    plan = Plan(shares=tuple(wanted), again=tuple(refit), train=train, test=test)
    plan = replace(plan, controls=tuple(share for share in plan.controls if share in wanted) or tuple(refit))
    plan = replace(plan, epochs=epochs, learning_rate=learning_rate)
    fwsvd_task(**chosen, seeds=drawn, plan=plan, device=device, folder=folder, known=known)


@app.command()
def train_mini(
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model and the documents go.")],
    architecture: Annotated[str, typer.Option(help=f"{', '.join(ARCHITECTURES)}; opt makes opt-mini.")] = "opt",
    characters: Annotated[int, typer.Option(min=1, help="Characters for SmolLM2 to write; 4.2 a token.")] = 94_000_000,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps.")] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Windows of 2,048 tokens in a step.")] = 32,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 1.5e-3,
    vocabulary: Annotated[int, typer.Option(min=300, help="Size of the vocabulary.")] = 8192,
    rows: Annotated[int, typer.Option(min=1, help="Conversations that SmolLM2 writes in a batch.")] = 3072,
    length: Annotated[int, typer.Option(min=64, help="Tokens in each conversation.")] = 640,
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu.")] = "cuda",
    seed: Annotated[int, typer.Option(help="Seed of the requests, samples, weights and order.")] = 0,
) -> None:
    """Write a corpus with SmolLM2, train a tokenizer and a small model on it, measure, save in float16.

    On one GPU, about 20 minutes on an H100:

        modegpt study train-mini --out opt-mini
    """
    if architecture not in ARCHITECTURES:
        raise ModegptError(f"unknown architecture '{architecture}': use {', '.join(ARCHITECTURES)}")
    check_folder("--out", folder)

    from modegpt.sources import find_device
    from modegpt.study.train_mini import Recipe, train_mini

    find_device(device)
    sizes = {"characters": characters, "rows": rows, "length": length, "vocabulary": vocabulary}
    recipe = Recipe(architecture=architecture, steps=steps, batch=batch, peak=peak, seed=seed, **sizes)
    train_mini(folder, recipe, device)


@app.command()
def pages() -> None:
    """Make README.md, its first picture and the pages in docs/ again from their templates and figures/results.

    In the repository's folder:

        modegpt study pages
    """
    from modegpt.study.pages import draw_first_picture, refresh_pages

    for page in (draw_first_picture(), *refresh_pages()):
        out.print(f"written: {page}")


@app.command()
def check(files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Results files.")]) -> None:
    """Check results files against the schema, and against rules that a schema cannot express.

    For example:

        modegpt study check figures/results/smollm2-135m.json
    """
    from modegpt.study.results import load

    bad = []
    for file in files:
        try:
            found = load(file)
            out.print(f"{file}: {len(found.rows)} rows, {found.device}, {found.date}")
        except ModegptError as error:
            bad.append(str(error))
    for problem in bad[1:]:
        err.print(problem, style="yellow")
    if bad:
        raise ModegptError(bad[0])


@app.command()
def schema() -> None:
    """Print the JSON schema of a results file.

    For example:

        modegpt study schema > results.schema.json
    """
    from modegpt.study import results

    print(json.dumps(results.schema().json_schema(), indent=1))


def _check_profile(profile: str, folder: Path | None) -> None:
    if profile not in PROFILES:
        raise ModegptError(f"unknown profile '{profile}': use {', '.join(PROFILES)}")
    if folder is not None:
        check_folder("--out", folder)
