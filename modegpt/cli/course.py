"""`modegpt course run | refresh | exercises | handout | questions | slides | challenge | grade`."""

from pathlib import Path
from typing import Annotated

import typer

from modegpt.files import check_file, check_folder

app = typer.Typer(
    help="Run the notebooks, refresh them, make exercises of them, grade what students hand in.", add_completion=False
)
NamesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[NAMES]", help="03, nystrom or 03_nystrom; without a name, all.")
]
FolderOption = Annotated[Path, typer.Option(metavar="DIR", help="Where the notebooks are.")]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: run/PROFILE beside them.")]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter", "-p", metavar="NAME=VALUE", help="Set a parameter, over the profile's; values are YAML."
    ),
]
NOTEBOOKS = Path("notebooks")


@app.command()
def run(
    names: NamesArgument = None,
    profile: Annotated[str, typer.Option(help="A set of parameters in profiles.yml.")] = "cpu",
    folder: FolderOption = NOTEBOOKS,
    target: OutOption = None,
    parameter: ParameterOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished and up to date.")] = False,
) -> None:
    """Run notebooks, with other parameters if you like; the outputs go to a folder of their own.

    A finished notebook is not run again until it, its parameters or the package changes.

        modegpt course run 03 -p layer=2 --out elsewhere
    """
    if target:
        check_folder("--out", target)

    from modegpt.course import commands

    commands.run(names, profile, folder, target, parameter, force)


@app.command()
def refresh(names: NamesArgument = None, folder: FolderOption = NOTEBOOKS) -> None:
    """Run the committed notebooks in place, then renew their signature figures and exercises.

    For example:

        modegpt course refresh 03
    """
    from modegpt.course import commands

    commands.refresh(names, folder)


@app.command()
def exercises(folder: FolderOption = NOTEBOOKS) -> None:
    """Write a copy of every notebook without solutions and outputs to exercises/, and a sheet of all exercises.

    Notebooks without exercises are copied too, so that the links between notebooks work.

        modegpt course exercises
    """
    from modegpt.course import commands

    commands.exercises(folder)


@app.command()
def handout(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    folder: FolderOption = NOTEBOOKS,
) -> None:
    """Write a checkout for students: the kit without solutions, tests and question bank, and rules for AI assistants.

    For example:

        modegpt course handout ../students
    """
    check_folder("OUT", target)

    from modegpt.course.handout import handout

    handout(target, folder)


@app.command()
def questions(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    folder: FolderOption = NOTEBOOKS,
) -> None:
    """Write the exam questions, and a page with their answers and rubrics, for lecturers.

    For example:

        modegpt course questions ../exam
    """
    check_folder("OUT", target)

    from modegpt.course.questions import write_pages

    write_pages(target, folder)


@app.command()
def slides(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the slides, NN_slug.html.")],
    names: NamesArgument = None,
    folder: FolderOption = NOTEBOOKS,
) -> None:
    """Write slides of notebooks: headings, formulas, pictures, summary; HTML files that need no network.

    For example:

        modegpt course slides ../slides 02 03
    """
    check_folder("OUT", target)

    from modegpt.course.slides import write_slides

    write_slides(target, names, folder)


@app.command()
def challenge(
    submission: Annotated[
        Path, typer.Argument(metavar="SUBMISSION.py", help="Defines compress, see examples/challenge/leaderboard.md.")
    ],
    leaderboard: Annotated[
        Path, typer.Option(metavar="FILE", help="The JSON file of all results; a page is written beside it.")
    ] = Path("examples/challenge/leaderboard.json"),
    text: Annotated[
        str, typer.Option(metavar="NAME", help="What scores: wiki-passages, or a file that students do not have.")
    ] = "wiki-passages",
) -> None:
    """Run a submission to the open challenge in a process of its own, score it, and write the leaderboard.

    The challenge: the lowest perplexity of SmolLM2 with 30 % of its block parameters gone. This runs the submission
    under your account: read it first.

        modegpt course challenge examples/challenge/svd_llm.py --leaderboard class.json
    """
    check_file("--leaderboard", leaderboard)

    from modegpt.course.challenge import Protocol, challenge

    challenge(submission, leaderboard, Protocol(text=text))


@app.command()
def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSIONS", help="A folder with STUDENT/03_nystrom.ipynb and so on.")
    ],
    folder: FolderOption = NOTEBOOKS,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Default: grades.csv in SUBMISSIONS.")
    ] = None,
    lessons: Annotated[bool, typer.Option("--lessons", help="Run all cells, not only the exercises.")] = False,
) -> None:
    """Grade hand-ins with this repository's check cells; print the points of each and write a table of all exercises.

    This runs the students' code under your account: use a machine where it can do no harm.

        modegpt course grade hand-ins --csv grades.csv
    """
    check_file("--csv", table)

    from modegpt.course import commands

    commands.grade(submissions, folder, table, lessons)
