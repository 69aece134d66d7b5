"""Grading: what students handed in, scored by the check cells of the notebooks as they are here."""

import contextlib
import csv
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from modegpt import console
from modegpt.course.answers import Answers, preload
from modegpt.course.check.verdict import NotYet
from modegpt.course.files import mark, read
from modegpt.errors import ModegptError

HEADER = ("student", "exercise", "points", "of", "note", "look at")
UNKNOWN = "not graded: no notebook of the course has this name"
SECONDS = {False: 60, True: 600}  # for one cell, without and with the lessons; ours take a tenth of it
LOOK_AT = {  # what an answer has no need of
    r"\bmodegpt\b": "mentions modegpt",
    r"\bcheck\s*=[^=]|\b(?:def|class|as|import|global)\s+check\b": "rebinds check",
    r"__(?:eq|ne|lt|le|gt|ge|bool|float|class|dict|globals|builtins|import|subclasses)__": "defines or reads {}",
    r"input_transformer|ast_transformer|get_ipython|IPython": "changes what IPython runs ({})",
    r"\b(?:os|sys|subprocess|importlib|inspect|socket|ctypes|gc|builtins)\.": "reaches outside ({})",
    r"\b(?:open|exec|eval)\(": "reaches outside ({}...)",
}

Row = tuple[str, str, float, float, str, str]


def grade(submissions: Path, sources: dict[str, Path], table: Path, lessons: bool = False) -> None:
    """Grade SUBMISSIONS/STUDENT/NN_slug.ipynb, or one folder deeper, as archives unpack; print and write each at once.

    Each hand-in runs in a process and a folder of its own; the checks run here, where it cannot reach them. An exercise
    of a notebook that only others handed in counts 0. Nothing that is wrong with one hand-in stops the others: it is
    that student's note, which says what the check says, or what kept it from running. "look at" names what a lecturer
    should see with their own eyes.

    Parameters
    ----------
    submissions: the folder with one folder for each student; names that start with a dot are passed over
    sources: the notebooks with solutions, by slug
    table: the CSV file; its rows are on disk as soon as a hand-in is graded
    lessons: run all cells of the hand-ins, not only those that students wrote

    Raises ModegptError if there is nothing to grade, or the table cannot be written.
    """
    students = {path.name: _handed_in(path) for path in sorted(submissions.glob("[!.]*")) if path.is_dir()}
    slugs = sorted({path.stem for paths in students.values() for path in paths} & set(sources))
    if not slugs:
        raise ModegptError(f"nothing to grade: {submissions}/STUDENT/NN_slug.ipynb is where notebooks should be")
    originals = {slug: read(sources[slug]) for slug in slugs}
    preload(
        {
            name
            for source in originals.values()
            for name in re.findall(r"^(?:from|import) (\S+)", _imports(source), re.M)
        }
    )
    total, done = sum(map(len, students.values())), 0
    try:
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(HEADER)
            for student, paths in students.items():
                for slug in slugs:
                    done += slug in {path.stem for path in paths}
                    console.out.print(f"[{done} of {total}] {_plain(student)}, {slug}:", end=" ")
                    start = time.perf_counter()
                    own = list(
                        _graded(student, [path for path in paths if path.stem == slug], originals[slug], lessons)
                    )
                    rows.writerows(own)
                    file.flush()
                    points, of = (sum(row[column] for row in own) for column in (2, 3))
                    console.out.print(f"{points:g} of {of:g} points, {time.perf_counter() - start:.0f} s")
                    for _, exercise, points, of, *words in own:
                        if any(words):
                            console.out.print(f"  {exercise}: {points:g} of {of:g}, {'; '.join(filter(None, words))}")
                    console.out.file.flush()  # where it is a file, one reads along too
                for path in paths:
                    if path.stem not in sources:
                        done += 1
                        name = _plain(path.name)
                        rows.writerow((_plain(student), name, 0, 0, UNKNOWN, ""))
                        console.out.print(f"[{done} of {total}] {_plain(student)}, {name}: {UNKNOWN}")
    except OSError as error:
        raise ModegptError(f"cannot write {table}: {error.strerror}") from error
    console.out.print(f"written: {table}")


def check_cells(source: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that give points, by the number of the exercise, such as 03.1."""
    checks = [cell for cell in source.cells if mark(cell).get("grade")]
    return {mark(cell)["grade_id"].removeprefix("check-").replace("-", "."): cell for cell in checks}


def _handed_in(folder: Path) -> list[Path]:
    """A student's notebooks; of two with one name the one less deep."""
    found = [*folder.glob("[!.]*.ipynb"), *folder.glob("[!._]*/[!.]*.ipynb")]
    names: dict[str, Path] = {}
    for path in sorted(filter(Path.is_file, found), key=lambda path: (len(path.parts), path)):
        names.setdefault(path.name, path)
    return list(names.values())


def _graded(student: str, paths: list[Path], source: NotebookNode, lessons: bool) -> Iterator[Row]:
    """A row for each exercise of one notebook."""
    checks = check_cells(source)
    try:
        marks = _marks(read(paths[0]), source, lessons) if paths else {}
    except Exception as error:  # whatever it is, it is this hand-in's
        note = str(error) if isinstance(error, ModegptError) else f"{type(error).__name__}: {error}"
        note = note.replace(str(paths[0]), paths[0].name)  # students read it
        marks = dict.fromkeys(checks, (0, note, ""))
    for exercise, cell in checks.items():
        points, note, look = marks.get(exercise, (0, "not handed in", ""))
        yield _plain(student), exercise, points, mark(cell)["points"], _plain(note), _plain(look)


def _marks(submission: NotebookNode, source: NotebookNode, lessons: bool) -> dict[str, tuple[float, str, str]]:
    """Points, note and what to look at, by exercise."""
    imports = _imports(source)
    solutions = {mark(cell)["grade_id"]: cell.source for cell in source.cells if mark(cell).get("solution")}
    functions = {grade_id: re.search(r"^def (\w+)", text, re.M)[1] for grade_id, text in solutions.items()}
    packaged = {name for line in re.findall(r"^from modegpt.* import (.+)", imports, re.M) for name in _words(line)}
    ours = {cell.source.strip() for cell in source.cells if not mark(cell).get("solution")}
    codes = [cell for cell in submission.cells if cell.cell_type == "code"]
    kept = [cell.source for cell in codes if not mark(cell).get("grade")]
    theirs = [text for text in kept if text.strip() not in ours]
    older = {cell.source for cell in codes if cell.id == "imports"}  # of a notebook that was handed out before a change
    marks = {}
    with Answers([imports, *(kept if lessons else theirs)], SECONDS[lessons]) as answers:
        for exercise, check in check_cells(source).items():
            grade_id = mark(check)["grade_id"]
            solution = grade_id.replace("check-", "ex-")
            note = _note(check.source, functions[solution], imports, answers)
            elsewhere = "|".join(name for name in functions.values() if name != functions[solution])
            own = "\n".join(
                text for text in theirs if text not in older and not re.search(rf"^def (?:{elsewhere})\b", text, re.M)
            )
            look = _look_at(own, packaged - _words(solutions[solution]) - {functions[solution]})
            if any(mark(cell).get("grade_id") == grade_id and cell.source != check.source for cell in codes):
                look.append("its check cell was changed")
            marks[exercise] = 0 if note else mark(check)["points"], note, ", ".join(look)
    return marks


def _imports(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.id == "imports")


def _note(check: str, name: str, imports: str, answers: Answers) -> str:
    """What the check says of the function of that name; empty if it is right."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            names: dict = {}
            exec(imports, names)
            names[name] = answers.function(name)
            exec(check, names)
    except Exception as error:
        stopped = [told for cell, told in answers.errors.items() if told and re.search(rf"^def {name}\b", cell, re.M)]
        kind = "Not yet" if isinstance(error, NotYet) else type(error).__name__
        note = stopped[-1] if stopped and isinstance(error, NameError) else f"{kind}: {error}"
        return re.sub(r"<ipython-input-[^>]*>, ", "", note).removesuffix(": ")
    return ""


def _look_at(text: str, packaged: set[str]) -> list[str]:
    """What in a student's code is no part of an answer; `packaged` are names of the package that it does not need."""
    found = [(said, re.search(pattern, text)) for pattern, said in LOOK_AT.items()]
    calls = sorted(name for name in packaged if re.search(rf"(?<!def )\b{name}\(", text))
    return [said.format(at[0]) for said, at in found if at] + [f"calls the package's {name}" for name in calls]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _plain(text: str) -> str:
    """One line that neither a terminal nor a spreadsheet takes for more than text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"'{line}" if line[:1] in tuple("=+-@") else line
