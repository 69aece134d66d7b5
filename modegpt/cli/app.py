"""The program: `modegpt doctor | compress | evaluate | generate | compare | export | bench | study | course`."""

import sys

import typer

from modegpt import console
from modegpt.cli import bench, study
from modegpt.cli import course as lessons
from modegpt.cli.compare import compare
from modegpt.cli.compress import compress
from modegpt.cli.doctor import doctor
from modegpt.cli.evaluate import evaluate
from modegpt.cli.export import export
from modegpt.cli.generate import generate

app = typer.Typer(
    help="Compress causal language models without fine-tuning: MoDeGPT, step by step.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (doctor, compress, evaluate, generate, compare, export):
    app.command()(verb)
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(lessons.app, name="course")


def main() -> None:
    """The console script."""
    console.run(app, sys.argv[1:] or ["--help"])
