"""Grading with nbgrader: what students handed in, scored by the check cells of the notebooks as they are here."""

import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

from modegpt import console
from modegpt.errors import ModegptError
from modegpt.notebooks import QUIET, read

HEADER = ("student", "exercise", "points", "of")
SECONDS = 600  # for one cell; on two CPU cores none of ours takes a tenth of it


def graded(submissions: Path, sources: dict[str, Path]) -> list[tuple]:
    """Grade SUBMISSIONS/STUDENT/NN_slug.ipynb; an exercise of a notebook that someone else handed in counts 0.

    Parameters
    ----------
    submissions: the folder with one folder for each student
    sources: the notebooks with solutions, by slug

    Returns the table: the header and a row for each student and exercise.
    Raises ModegptError if there is nothing to grade, or a notebook of another name.
    """
    handed_in = sorted(submissions.glob("*/*.ipynb"))
    students = sorted({path.parent.name for path in handed_in})
    if not handed_in:
        raise ModegptError(f"nothing to grade: {submissions}/STUDENT/NN_slug.ipynb is where notebooks should be")
    if unknown := [path for path in handed_in if path.stem not in sources]:
        raise ModegptError(f"{unknown[0]}: no notebook of the course is called {unknown[0].name}")
    scores = _autograde(handed_in, sources, students)
    rows: list[tuple] = [HEADER]
    for student in students:
        for slug in sorted({path.stem for path in handed_in}):
            for grade_id, of in check_cells(sources[slug]).items():
                exercise = grade_id.removeprefix("check-").replace("-", ".")
                rows.append((student, exercise, scores.get((student, slug, grade_id), 0), of))
    return rows


def check_cells(source: Path) -> dict[str, float]:
    """The grade ids of a notebook's check cells, with their points."""
    marks = [cell.metadata.get("nbgrader", {}) for cell in read(source).cells]
    return {mark["grade_id"]: mark["points"] for mark in marks if mark.get("grade")}


def _autograde(handed_in: list[Path], sources: dict[str, Path], students: list[str]) -> dict[tuple, float]:
    """Points by student, slug and grade id, from a course that ends with this call; a notebook is an assignment."""
    try:
        from nbgrader.apps import NbGraderAPI
        from nbgrader.coursedir import CourseDirectory
    except ImportError as error:
        raise ModegptError("grading takes nbgrader: pip install -c constraints.txt nbgrader") from error
    from traitlets.config import Config

    scores = {}
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # nbgrader calls `alembic`
    environment = patch.dict(os.environ, PATH=here)  # nbgrader's own setenv does not restore
    with tempfile.TemporaryDirectory() as course, environment, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="nbgrader")  # how it uses its database is not ours to mend
        execution = {"timeout": SECONDS, "extra_arguments": QUIET}
        settings = Config({"CourseDirectory": {"root": course}, "Execute": execution})
        api = NbGraderAPI(CourseDirectory(config=settings), config=settings)
        for slug in {path.stem for path in handed_in}:
            _copy(sources[slug], Path(course, "source", slug))
            _succeed(api.generate_assignment(slug), f"{slug} cannot be made an assignment")
        for path in handed_in:
            # names of nbgrader's own: a student's folder may have any
            student = f"student{students.index(path.parent.name)}"
            console.out.print(f"{path.parent.name}, {path.stem}: grading ...")
            try:
                read(path)
                _copy(path, Path(course, "submitted", student, path.stem))
                _succeed(api.autograde(path.stem, student), f"{path} counts 0, grading it failed")
            except ModegptError as error:  # one student's is no reason to leave the others without
                console.err.print(str(error))
                continue
            with api.gradebook as book:
                notebook = book.find_submission_notebook(path.stem, path.stem, student)
                scores |= {(path.parent.name, path.stem, grade.name): grade.score for grade in notebook.grades}
    return scores


def _copy(notebook: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(notebook, folder)


def _succeed(result: dict, failure: str) -> None:
    if not result["success"]:
        reasons = re.findall(r"^ *(\w+(?:Error|Entry): .*)$", result.get("log") or "", re.M)
        raise ModegptError(f"{failure}: {reasons[-1] if reasons else 'nbgrader gives no reason'}")
