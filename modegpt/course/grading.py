"""Grading with nbgrader: what students handed in, scored by the check cells of the notebooks as they are here."""

import copy
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from modegpt import console
from modegpt.course.files import QUIET, read, write
from modegpt.errors import ModegptError

HEADER = ("student", "exercise", "points", "of", "note")
SECONDS = 600  # for one cell; on two CPU cores none of ours takes a tenth of it

Marks = dict[str, tuple[float, str]]  # points and note by grade id


def graded(submissions: Path, sources: dict[str, Path]) -> list[tuple]:
    """Grade SUBMISSIONS/STUDENT/NN_slug.ipynb; an exercise of a notebook that someone else handed in counts 0.

    Parameters
    ----------
    submissions: the folder with one folder for each student; names that start with a dot are passed over
    sources: the notebooks with solutions, by slug

    Returns the table: the header and a row for each student and exercise. The note says why points were lost: what the
    check says, the error that kept it from running, or that nothing was handed in.
    Raises ModegptError if there is nothing to grade, or a notebook of another name.
    """
    students = sorted(path.name for path in submissions.glob("[!.]*") if path.is_dir())
    handed_in = [path for student in students for path in sorted((submissions / student).glob("[!.]*.ipynb"))]
    if not handed_in:
        raise ModegptError(f"nothing to grade: {submissions}/STUDENT/NN_slug.ipynb is where notebooks should be")
    if unknown := [str(path.relative_to(submissions)) for path in handed_in if path.stem not in sources]:
        raise ModegptError(f"rename or remove what has no notebook's name: {', '.join(unknown)}")
    marks = _autograde(handed_in, sources, students)
    rows: list[tuple] = [HEADER]
    for student in students:
        for slug in sorted({path.stem for path in handed_in}):
            for grade_id, of in check_cells(sources[slug]).items():
                points, note = marks.get((student, slug), {}).get(grade_id, (0, "not handed in"))
                exercise = grade_id.removeprefix("check-").replace("-", ".")
                rows.append((student, exercise, points, of, note if points < of else ""))
    return rows


def check_cells(source: Path) -> dict[str, float]:
    """The grade ids of a notebook's check cells, with their points."""
    return {mark["grade_id"]: mark["points"] for mark, _ in _marked(read(source)) if mark.get("grade")}


def _autograde(handed_in: list[Path], sources: dict[str, Path], students: list[str]) -> dict[tuple[str, str], Marks]:
    """Marks by student and slug, from a course that ends with this call; a notebook is an assignment."""
    try:
        from nbgrader.apps import NbGraderAPI
        from nbgrader.coursedir import CourseDirectory
    except ImportError as error:
        raise ModegptError("grading takes nbgrader: pip install -c constraints.txt nbgrader") from error
    from traitlets.config import Config

    marks = {}
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # nbgrader calls `alembic`
    environment = patch.dict(os.environ, PATH=here)  # nbgrader's own setenv does not restore
    with tempfile.TemporaryDirectory() as course, environment, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="nbgrader")  # how it uses its database is not ours to mend
        execution = {"timeout": SECONDS, "extra_arguments": QUIET}
        settings = Config({"CourseDirectory": {"root": course}, "Execute": execution})
        api = NbGraderAPI(CourseDirectory(config=settings), config=settings)
        for slug in {path.stem for path in handed_in}:
            _put(read(sources[slug]), Path(course, "source", slug))
            _succeed(api.generate_assignment(slug), f"{slug} cannot be made an assignment")
        for path in handed_in:
            slug, source = path.stem, sources[path.stem]
            # names of nbgrader's own: a student's folder may have any
            student = f"student{students.index(path.parent.name)}"
            console.out.print(f"{path.parent.name}, {slug}: grading ...")
            try:
                _put(_in_order(read(path), read(source)), Path(course, "submitted", student, slug))
                _succeed(api.autograde(slug, student), f"{path} cannot be graded")
            except ModegptError as error:  # one student's is no reason to leave the others without
                console.err.print(str(error))
                note = str(error).replace(str(path), path.name)  # students read it
                marks[path.parent.name, slug] = dict.fromkeys(check_cells(source), (0, note))
                continue
            notes = _notes(read(Path(course, "autograded", student, slug, path.name)))
            with api.gradebook as book:
                grades = book.find_submission_notebook(slug, slug, student).grades
                marks[path.parent.name, slug] = {grade.name: (grade.score, notes[grade.name]) for grade in grades}
    return marks


def _in_order(submission: NotebookNode, source: NotebookNode) -> NotebookNode:
    """The submission with the marks of the source, where nbgrader would refuse it or give no point.

    Jupyter copies a mark with its cell (the last copy keeps it), other editors drop marks. A check that is gone comes
    back at the end, where the student's function is still known. Changes the notebook given.
    """
    marks = {mark["grade_id"]: cell for mark, cell in _marked(source)}
    found = set()
    for cell in reversed(submission.cells):
        grade_id = cell.metadata.pop("nbgrader", {}).get("grade_id")
        if grade_id in marks and grade_id not in found:
            cell.metadata["nbgrader"] = copy.deepcopy(marks[grade_id].metadata["nbgrader"])
            found.add(grade_id)
    for mark, cell in _marked(source):
        if mark.get("grade") and mark["grade_id"] not in found:
            submission.cells.append(new_code_cell(cell.source, metadata=copy.deepcopy(cell.metadata)))
    return submission


def _notes(notebook: NotebookNode) -> dict[str, str]:
    """By the grade id of each check what went wrong: in the solution if that failed to run, else in the check."""
    errors = {mark["grade_id"]: _error(cell) for mark, cell in _marked(notebook)}
    return {name: errors.get(name.replace("check-", "ex-")) or error for name, error in errors.items()}


def _error(cell: NotebookNode) -> str:
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            if output.ename == "KeyboardInterrupt":  # nobody else is there to stop it
                return f"stopped after {SECONDS} s"
            name = "Not yet" if output.ename == "NotYet" else output.ename
            return " ".join(f"{name}: {output.evalue}".split()).removesuffix(":")
    return ""


def _marked(notebook: NotebookNode) -> list[tuple[NotebookNode, NotebookNode]]:
    """nbgrader's mark and the cell, of every cell that has one."""
    return [(cell.metadata["nbgrader"], cell) for cell in notebook.cells if cell.metadata.get("nbgrader")]


def _put(notebook: NotebookNode, folder: Path) -> None:
    write(notebook, folder / f"{folder.name}.ipynb")


def _succeed(result: dict, failure: str) -> None:
    if not result["success"]:
        reasons = re.findall(r"^ *(?:\w+\.)*(\w+(?:Error|Entry): .*)$", result.get("log") or "", re.M)
        raise ModegptError(f"{failure}: {reasons[-1] if reasons else 'nbgrader gives no reason'}")
