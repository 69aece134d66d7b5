"""The students' checkout: what is in it, what is not, and the way from a handout to grades."""

import csv
import re
from pathlib import Path

import pytest

from modegpt.course import commands
from modegpt.course.files import SOLUTION, mark, read, write
from modegpt.course.handout import LINK, handout
from modegpt.errors import ModegptError

pytest.importorskip("nbstripout", reason="the environment of `make setup` has it")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOLVED = {path.stem: read(path) for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
CELLS = [cell for notebook in SOLVED.values() for cell in notebook.cells if cell.cell_type == "code"]
TAUGHT = {line.strip() for cell in CELLS if not mark(cell).get("solution") for line in cell.source.splitlines()}
LINES = (
    {  # of solutions, long enough to be nobody else's
        line.strip()
        for cell in CELLS
        if mark(cell).get("solution")
        for line in SOLUTION.search(cell.source)[0].splitlines()[1:-1]
        if len(line.strip()) > 30
    }
    - TAUGHT
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    target = tmp_path_factory.mktemp("handout") / "students"
    handout(target, NOTEBOOKS)
    return target


def test_what_travels_and_what_stays(checkout):
    assert {path.stem for path in (checkout / "notebooks").glob("*.ipynb")} == set(SOLVED)
    assert "Do not" in (checkout / "AGENTS.md").read_text(encoding="utf-8")
    assert (checkout / "modegpt" / "assets" / "opt-mini" / "model.safetensors").exists()
    behind = ("tests", ".git", "docs/teaching", "docs/teaching.md", "docs/templates", "notebooks/exercises")
    assert [name for name in behind if (checkout / name).exists()] == []
    assert list(checkout.parent.iterdir()) == [checkout]
    assert not list(checkout.rglob("__pycache__"))


def test_no_line_of_a_solution_travels(checkout):
    assert len(LINES) > 60
    files = [path for path in checkout.rglob("*") if path.suffix in (".py", ".md", ".yml", ".toml")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    for path in (checkout / "notebooks").glob("*.ipynb"):
        cells = read(path).cells
        texts[path] = "\n".join(cell.source for cell in cells)
        assert "SOLUTION" not in "".join(cell.source for cell in cells)
        assert not [cell.id for cell in cells if cell.get("outputs")]
    told = {(path.relative_to(checkout), line.strip()) for path in texts for line in texts[path].splitlines()}
    found = {name for name, line in told if line in LINES}
    # a check computes the answer to compare with; AGENTS.md and docs/teaching.md say so
    assert {str(name.parent) for name in found} <= {"modegpt/course/check"}


def test_links_lead_somewhere(checkout):
    pages = list(checkout.rglob("*.md"))
    links = [(page, link[2]) for page in pages for link in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert len(links) > 50
    assert [link for page, link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ModegptError, match="exists"):
        handout(tmp_path / "there", NOTEBOOKS)
    with pytest.raises(ModegptError, match="no notebooks"):
        handout(tmp_path / "out", tmp_path)
    write(SOLVED["05_svd"], tmp_path / "notebooks" / "05_svd.ipynb")
    with pytest.raises(ModegptError, match="whole repository"):
        handout(tmp_path / "out", tmp_path / "notebooks")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_solved_notebook_gets_every_point(tmp_path):
    for name, notebook in SOLVED.items():
        write(notebook, tmp_path / "solved" / f"{name}.ipynb")
    commands.grade(tmp_path, NOTEBOOKS)
    with (tmp_path / "grades.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(bool(mark(cell).get("grade")) for cell in CELLS)
    assert [row for row in rows if row["points"] != row["of"] or row["note"]] == []


@pytest.mark.slow
def test_from_the_handout_to_grades(checkout, tmp_path):
    """A right, a wrong and an empty hand-in of what students got, graded with the notebooks here."""
    name = "05_svd"

    def answer(student, body):
        notebook = read(checkout / "notebooks" / f"{name}.ipynb")
        for cell, solved in zip(notebook.cells, SOLVED[name].cells, strict=True):
            if mark(cell).get("solution"):
                assert "raise NotImplementedError()" in cell.source
                cell.source = body(cell.source, solved.source)
        write(notebook, tmp_path / student / f"{name}.ipynb")

    answer("right", lambda given, solved: solved)
    answer("wrong", lambda given, solved: given.replace("raise NotImplementedError()", "return 1, 2"))
    answer("empty", lambda given, solved: given)
    commands.grade(tmp_path, NOTEBOOKS)
    with (tmp_path / "grades.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    full = [float(row["of"]) for row in rows if row["student"] == "right"]
    assert len(full) == 4 and sum(full) == 10
    assert [(float(row["points"]), row["note"]) for row in rows if row["student"] == "right"] == [(f, "") for f in full]
    for student, note in (("wrong", "Not yet: .* should "), ("empty", "Not yet: .* has no solution yet")):
        own = [row for row in rows if row["student"] == student]
        assert [float(row["points"]) for row in own] == [0] * 4
        assert all(re.match(note, row["note"]) for row in own)
