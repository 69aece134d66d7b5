"""The committed notebooks keep the rules that notebooks/README.md states, and what is made of them is up to date."""

import ast
import html
import importlib
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from modegpt.course import commands as notebooks
from modegpt.course import files

pytest.importorskip("nbstripout", reason="the environment of `make setup` has it")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
CARD = ("You will be able to", "You need", "Time", "The claim", "Its control")
KINDS_OF_OUTPUT = {"text/plain", "text/html", "text/markdown", "text/latex"}
PLACE = re.compile(r"(?<![\w.~/:])(?:/(?:work|tmp|root|home|Users|opt|usr|var)/|~/|[A-Z]:\\)\w")
PROGRESS = re.compile(r"\r|\d(?:it/s|s/it)|\d%\|")
IMAGE = re.compile(r"<img\b[^>]*>")
LINK = re.compile(r"\]\(([^)\s]+)\)")

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
WITHOUT_EXERCISES = ("00",)  # the map
LESSONS = [path for path in PATHS if path.stem[:2] not in WITHOUT_EXERCISES]
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def output_texts(cell: NotebookNode) -> list[str]:
    """What the outputs of a cell say, pictures left out."""
    texts = [output.get("text", "") for output in cell.get("outputs", [])]
    texts += [str(value) for output in cell.get("outputs", []) for value in output.get("data", {}).values()]
    return [re.sub(r"base64,[^\"]*", "", text) for text in texts]


def marks(notebook: NotebookNode, kind: str) -> list[tuple[int, str]]:
    """Position and grade_id of the cells that nbgrader takes for solutions, or for grades."""
    found = [(i, cell.metadata.get("nbgrader", {})) for i, cell in enumerate(notebook.cells)]
    return [(i, mark["grade_id"]) for i, mark in found if mark.get(kind)]


def test_there_are_notebooks():
    numbers = [path.stem[:2] for path in PATHS]
    assert numbers == sorted(set(numbers)) and numbers[:1] == ["00"]


@every_notebook
def test_first_cell_is_the_card(path):
    card = files.read(path).cells[0]
    assert card.cell_type == "markdown"
    assert card.source.startswith(f"# {path.stem[:2]} ")
    assert [part for part in CARD if f"**{part}" not in card.source] == []


@every_notebook
def test_no_placeholder_is_left(path):
    assert "@@" not in "".join(cell.source for cell in files.read(path).cells)


@every_notebook
def test_one_cell_of_parameters_sets_literals_and_nothing_else(path):
    notebook = files.read(path)
    assert len(files.tagged(notebook, "parameters")) == 1
    assert files.defaults(notebook)  # raises for anything but literals


@every_notebook
def test_scrubbed_and_valid(path):
    notebook = files.read(path)
    nbformat.validate(notebook)
    ids = [cell.get("id") for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(ids)
    assert not [name for name in ids if re.fullmatch(r"[0-9a-f]{8}", name)], "ids are words, so that differences read"
    assert notebook == files.scrub(files.read(path))


@every_notebook
def test_every_cell_ran_in_order_without_an_error(path):
    cells = code_cells(files.read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell.id for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [cell.id for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert any(cell.outputs for cell in cells)


@every_notebook
def test_a_clone_stays_small(path):
    assert path.stat().st_size < 300_000


@every_notebook
def test_no_line_of_code_scrolls_sideways(path):
    cells = code_cells(files.read(path))
    assert [line for cell in cells for line in cell.source.splitlines() if len(line) > 95] == []


@every_notebook
def test_every_picture_has_alt_text_and_no_output_needs_more_than_a_browser(path):
    notebook = files.read(path)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {kind for output in outputs for kind in output.get("data", {})} <= KINDS_OF_OUTPUT
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    pictures = IMAGE.findall("".join([*pages, *(cell.source for cell in markdown_cells(notebook))]))
    assert all(re.search(r'\balt="[^"]{10,}"', picture) for picture in pictures)
    assert not [cell.id for cell in markdown_cells(notebook) if re.search(r"!\[\s*\]", cell.source)]


@every_notebook
def test_what_a_cell_shows_is_seen(path):
    """A cell shows its last expression, not one inside an `if`."""
    drawn = [cell for cell in code_cells(files.read(path)) if re.search(r"^ *show\(", cell.source, re.M)]
    assert [cell.id for cell in drawn if not IMAGE.search("".join(output_texts(cell)))] == []


@every_notebook
def test_nothing_of_one_machine_and_no_progress_bar(path):
    for cell in files.read(path).cells:
        for text in (cell.source, *output_texts(cell)):
            assert not PLACE.search(text), cell.id
            assert not PROGRESS.search(text), cell.id


@every_notebook
@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "exercises"], ids=["whole", "exercises"])
def test_links_resolve(path, folder):
    text = "\n".join(cell.source for cell in markdown_cells(files.read(path)))
    links = [link.split("#")[0] for link in LINK.findall(text) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (folder / html.unescape(link)).exists()] == []


@every_notebook
def test_imports_from_the_package_resolve(path):
    for cell in code_cells(files.read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("modegpt"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


@every_notebook
def test_one_signature_picture_as_in_figures(path):
    notebook = files.read(path)
    assert len(files.tagged(notebook, "signature")) == 1
    assert (FOLDER.parent / "figures" / f"{path.stem}.png").read_bytes() == files.signature(notebook)


@every_notebook
def test_some_printed_results_are_compared_and_no_picture_is(path):
    compared = files.tagged(files.read(path), "nbval-check-output")
    assert compared
    assert not [cell.id for cell in compared if not cell.outputs or "<img" in str(cell.outputs)]


@every_lesson
def test_exercises_are_solution_then_check(path):
    notebook = files.read(path)
    solutions, checks = marks(notebook, "solution"), marks(notebook, "grade")
    assert len(solutions) >= 3
    assert [i + 1 for i, _ in solutions] == [i for i, _ in checks]
    assert [name for _, name in solutions] == [f"ex-{path.stem[:2]}-{n + 1}" for n in range(len(solutions))]
    assert [name for _, name in checks] == [f"check-{path.stem[:2]}-{n + 1}" for n in range(len(checks))]
    assert all(notebook.cells[i].metadata.nbgrader.locked for i, _ in checks)
    for i, name in solutions:
        assert files.SOLUTION.search(notebook.cells[i].source), name
        text = notebook.cells[i - 1].source
        assert f"### Exercise {path.stem[:2]}.{name[-1]}" in text and "Difficulty: " in text
        assert text.count("<details>") == text.count("</details>") in (2, 3)


@every_lesson
def test_only_solution_cells_hold_solutions(path):
    notebook = files.read(path)
    marked = {notebook.cells[i].id for i, _ in marks(notebook, "solution")}
    assert {cell.id for cell in notebook.cells if re.search("(BEGIN|END) SOLUTION", cell.source)} == marked


@every_lesson
def test_exercises_need_the_imports_and_nothing_else_of_the_lesson(path, capsys):
    notebook = files.read(path)
    (imports,) = (cell.source for cell in notebook.cells if cell.id == "imports")
    names = {}
    exec(imports, names)
    assert any("After a restart run the imports" in cell.source for cell in markdown_cells(notebook))
    checks = marks(notebook, "grade")
    for i, _ in checks:
        exec(notebook.cells[i - 1].source, names)
        exec(notebook.cells[i].source, names)
    assert capsys.readouterr().out.count("Right: ") == len(checks)


@pytest.mark.parametrize("number", WITHOUT_EXERCISES)
def test_the_others_have_none(number):
    for path in FOLDER.glob(f"{number}_*.ipynb"):
        assert not marks(files.read(path), "solution") + marks(files.read(path), "grade")


@every_notebook
def test_exercises_are_up_to_date(path):
    handed_out = FOLDER / "exercises" / path.name
    assert handed_out.exists(), "make exercises"
    assert files.read(handed_out) == files.without_solutions(files.read(path)), "make exercises"


@every_lesson
def test_no_solution_is_handed_out(path):
    handed_out = (FOLDER / "exercises" / path.name).read_text(encoding="utf-8")
    assert "SOLUTION" not in handed_out
    whole, stripped = files.read(path), files.read(FOLDER / "exercises" / path.name)
    for i, name in marks(whole, "solution"):
        body = files.SOLUTION.search(whole.cells[i].source)[0].splitlines()[1:-1]
        assert not [line for line in body if line in stripped.cells[i].source.splitlines()], name
        assert "NotImplementedError" in stripped.cells[i].source


def test_the_sheet_of_exercises_is_up_to_date_and_lists_all():
    sheet = (FOLDER / "exercises" / "README.md").read_text(encoding="utf-8")
    assert sheet == files.sheet(PATHS), "make exercises"
    names = [name for path in PATHS for _, name in marks(files.read(path), "grade")]
    assert re.findall(r"^\| \[([\d.]+)\]", sheet, re.M) == [name[6:].replace("-", ".") for name in names]


def test_no_exercise_is_left_over():
    assert sorted(path.name for path in (FOLDER / "exercises").glob("*.ipynb")) == [path.name for path in PATHS]


@pytest.mark.parametrize("profile", yaml.safe_load((FOLDER / "profiles.yml").read_text()))
def test_profiles_name_notebooks_and_parameters_that_exist(profile):
    assert notebooks.planned(FOLDER, None, profile, [])


def test_the_cpu_profile_runs_every_notebook_as_it_is():
    assert notebooks.planned(FOLDER, None, "cpu", []) == {path: {} for path in PATHS}
