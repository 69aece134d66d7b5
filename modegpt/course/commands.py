"""Run the notebooks, renew them, make exercises of them, grade what students hand in."""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from modegpt import console
from modegpt.course.files import (
    QUIET,
    defaults,
    read,
    scrub,
    sheet,
    signature,
    without_solutions,
    write,
)
from modegpt.errors import ModegptError
from modegpt.files import write_whole

NOTEBOOKS = Path("notebooks")


def run(
    names: list[str] | None = None,
    profile: str = "cpu",
    folder: Path = NOTEBOOKS,
    target: Path | None = None,
    parameter: list[str] | None = None,
    force: bool = False,
) -> None:
    """Run notebooks with other parameters, such as "layer=27"; the outputs go to `target`, by default run/PROFILE.

    A notebook whose output exists is not repeated until it, its parameters or the package changes, unless by `force`.
    """
    target = target or folder / "run" / profile  # JupyterLab opens nothing in a folder with a dot
    plan = planned(folder, names, profile, parameter or [])
    target.mkdir(parents=True, exist_ok=True)
    for source, values in plan.items():
        finished, inputs = target / source.name, fingerprint(source, values)
        if not force and finished.exists() and read(finished).metadata.get("modegpt") == inputs:
            console.out.print(f"{source.stem}: up to date")
            continue
        console.out.print(f"{source.stem}: running ...")
        finished.unlink(missing_ok=True)  # or a failed run would leave it, of other inputs
        notebook = execute(source, finished.with_name(f"{source.stem}.failed.ipynb"), values)
        notebook.metadata["modegpt"] = inputs
        write(notebook, finished)
        console.out.print(f"{source.stem}: written to {finished}")


def refresh(names: list[str] | None = None, folder: Path = NOTEBOOKS) -> None:
    """Run the committed notebooks in place, then renew their signature figures and exercises."""
    from modegpt.sources import model_folder

    model_folder("smollm2-135m")  # converted now, or the first notebook would show how that went
    for path in chosen(folder, names):
        console.out.print(f"{path.stem}: running ...")
        with tempfile.TemporaryDirectory() as scratch:
            notebook = scrub(execute(path, Path(scratch) / path.name, {}))
        write(notebook, path)
        if png := signature(notebook):
            (folder.parent / "figures").mkdir(exist_ok=True)
            (folder.parent / "figures" / f"{path.stem}.png").write_bytes(png)
    exercises(folder)


def exercises(folder: Path = NOTEBOOKS) -> None:
    """Write every notebook once more to exercises/, without solutions and outputs, and a sheet of all exercises.

    Those without an exercise are written too, so that links between notebooks hold there.
    """
    paths = chosen(folder, None)
    (folder / "exercises").mkdir(exist_ok=True)
    for left_over in {path.name for path in (folder / "exercises").glob("*.ipynb")} - {path.name for path in paths}:
        (folder / "exercises" / left_over).unlink()
    for path in paths:
        write(without_solutions(read(path)), folder / "exercises" / path.name)
    write_whole(folder / "exercises" / "README.md", sheet(paths))
    console.out.print(f"{folder / 'exercises'}: {len(paths)} notebooks")


def grade(submissions: Path, folder: Path = NOTEBOOKS, table: Path | None = None, lessons: bool = False) -> None:
    """Grade with the check cells as they are here; print what each hand-in gets and write a table of all exercises.

    Only what students wrote is run, unless `lessons`: then all cells.
    """
    from modegpt.course.grading import grade

    sources = {path.stem: path for path in chosen(folder, None)}
    grade(submissions, sources, table or submissions / "grades.csv", lessons)


def chosen(folder: Path, names: list[str] | None) -> list[Path]:
    """The notebooks of these names, or all. Raises ModegptError for a name that none has."""
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ModegptError(f"no notebooks in {folder}/: run this where the repository is, or say --folder")
    known = {alias: path for path in found for alias in (path.stem, path.stem[:2], path.stem[3:], path.name, str(path))}
    if unknown := [name for name in names or [] if name not in known]:
        raise ModegptError(f"no notebook '{unknown[0]}'; there are {', '.join(path.stem for path in found)}")
    return sorted({known[name] for name in names}) if names else found


def planned(folder: Path, names: list[str] | None, profile: str, assignments: list[str]) -> dict[Path, dict[str, Any]]:
    """The notebooks to run and the parameters of each; without names, those that the profile lists.

    Raises ModegptError for a profile, notebook or parameter that does not exist, and a value of the wrong kind.
    """
    try:
        profiles = yaml.safe_load((folder / "profiles.yml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ModegptError(f"cannot read {folder}/profiles.yml: {error}") from error
    if profile not in profiles:
        raise ModegptError(f"no profile '{profile}'; there are {', '.join(profiles)}")
    listed, plan = profiles[profile] or {}, {}
    for path in chosen(folder, names or list(listed)):
        if path.stem not in listed:
            raise ModegptError(f"the profile '{profile}' says nothing of {path.stem}")
        wanted = dict(listed[path.stem] or {}) | dict(map(_assignment, assignments))
        plan[path] = {name: _fitting(path, name, value) for name, value in wanted.items()}
    return plan


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> NotebookNode:
    """Run a notebook by way of `target`, which stays there only if a cell fails. Raises ModegptError then."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    try:
        notebook = execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=sys.stderr.isatty(),
            cwd=source.parent,
            extra_arguments=QUIET,
        )
    except PapermillExecutionError as error:
        raise ModegptError(f"{source.stem}, cell [{error.exec_count}]: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise ModegptError(f"{source.stem}: the kernel died (out of memory?)") from error
    target.unlink()
    return notebook


def fingerprint(source: Path, parameters: dict[str, Any]) -> str:
    """Of all that the outputs follow from: the cells, the parameters and the package."""
    digest = hashlib.sha256(repr((sorted(parameters.items()), [cell.source for cell in read(source).cells])).encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ModegptError(f"--parameter is NAME=VALUE, got '{text}'")
    return name, yaml.safe_load(value)


def _fitting(path: Path, name: str, value: Any) -> Any:
    """The value, if the notebook has such a parameter of that kind; YAML takes 1e-3 for text, it is a number here."""
    known = defaults(read(path))
    if name not in known:
        raise ModegptError(f"{path.stem} has no parameter '{name}'; it has {', '.join(known) or 'none'}")
    kind = list if isinstance(known[name], tuple) else type(known[name])  # YAML has no tuples
    try:
        value = float(value) if kind is float else value
    except (TypeError, ValueError):
        pass
    if known[name] is not None and not isinstance(value, kind):
        raise ModegptError(f"{path.stem}: {name} should be a {kind.__name__} such as {known[name]!r}, got {value!r}")
    return value
