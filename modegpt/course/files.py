"""Notebooks as files: read, write, scrub, and make the students' copy of one."""

import ast
import base64
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from modegpt.errors import ModegptError
from modegpt.files import write_whole

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
QUIET = ["--log-level=ERROR"]  # a kernel warns of its own transport, whatever runs it
TASK = re.compile(  # the head of an exercise
    r"^### Exercise (?P<number>[\d.]+): (?P<title>.+)\n+Difficulty: (?P<difficulty>\d) of 5, (?P<minutes>\d+) minutes",
    re.M,
)
SHEET = """# Exercises

Open a notebook in Jupyter with the kit's environment (`make lab`) and run it from the top; after a restart, the cell of
imports is enough. Write the function that the task asks for and run the check below it. The check says *Right*, or
names the likely mistake. Hints are folded. Do not change the names of files and functions, nor the check cells. Then
hand in the notebook.

Scaffold exercises lead into a lesson, core exercises are what everybody should have solved, challenges are for whoever
wants more.

| exercise | | tier | difficulty | minutes | points | function |
|---|---|---|---|---:|---:|---|
"""
TIERS = {1: "scaffold", 2: "scaffold", 3: "core", 4: "challenge", 5: "challenge"}  # by difficulty
STUB = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"  # nbgrader's


def defaults(notebook: NotebookNode) -> dict[str, Any]:
    """What the cell tagged `parameters` sets. Raises ValueError unless it sets literals and does nothing else."""
    values = {}
    for line in ast.parse("\n".join(cell.source for cell in tagged(notebook, "parameters"))).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f"line {line.lineno} of the parameters is no assignment to a name")
        values[line.targets[0].id] = ast.literal_eval(line.value)
    return values


def scrub(notebook: NotebookNode) -> NotebookNode:
    """Keep the outputs, counts and ids; drop what another machine or minute would write differently."""
    from nbstripout import strip_output

    strip_output(notebook, keep_output=True, keep_count=True, keep_id=True)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "nbgrader") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """As students get it. Changes the notebook given."""
    from nbstripout import strip_output

    strip_output(notebook, keep_output=False, keep_count=False, keep_id=True)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = SOLUTION.sub(STUB, cell.source)
    return scrub(notebook)


def sheet(paths: list[Path]) -> str:
    """The exercises of these notebooks on one page, from their tasks and marks."""
    rows = []
    for path in paths:
        cells = read(path).cells
        for task, solution, check in zip(cells, cells[1:], cells[2:], strict=False):
            if mark(check).get("grade") and (found := TASK.search(task.source)):
                function = re.search(r"^def (\w+)", solution.source, re.M)
                points = mark(check)["points"]
                rows.append(
                    f"| [{found['number']}]({path.name}) | {found['title']} | {TIERS[int(found['difficulty'])]} | "
                    f"{found['difficulty']} of 5 | {found['minutes']} | {points:g} | `{function[1]}` |"
                )
    return SHEET + "\n".join(rows) + "\n"


def signature(notebook: NotebookNode) -> bytes | None:
    """The picture in the output of the cell tagged `signature`."""
    for cell in tagged(notebook, "signature"):
        html = "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
        if found := re.search(r'src="data:image/png;base64,([^"]+)"', html):
            return base64.b64decode(found[1])
    return None


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    """The cells that carry a tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def mark(cell: NotebookNode) -> dict[str, Any]:
    """nbgrader's mark of a cell, empty where it has none."""
    found = cell.metadata.get("nbgrader")
    return found if isinstance(found, dict) else {}


def read(path: Path) -> NotebookNode:
    """A notebook in today's format. Raises ModegptError for a file that is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise ModegptError(f"{path} is no notebook that can be read") from error


def write(notebook: NotebookNode, path: Path) -> None:
    """Whole or not at all."""
    write_whole(path, nbformat.writes(notebook) + "\n")
