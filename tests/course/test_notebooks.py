"""The commands that keep the notebooks true, on a tiny notebook."""

import base64
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from modegpt.course import commands as notebooks
from modegpt.course import files
from modegpt.errors import ModegptError

pytest.importorskip("papermill", reason="the environment of `make setup` has it")

PNG = b"not quite a PNG"
PICTURE = f'<img alt="a dot" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">'


def exercise(number: int, name: str, factor: int, points: int) -> list:
    mark = {"locked": False, "schema_version": 3, "task": False}
    solution = mark | {"grade": False, "solution": True, "grade_id": f"ex-03-{number}"}
    check = mark | {
        "grade": True,
        "solution": False,
        "locked": True,
        "points": points,
        "grade_id": f"check-03-{number}",
    }
    source = f"def {name}(x):\n    ### BEGIN SOLUTION\n    return {factor} * x\n    ### END SOLUTION"
    return [
        new_code_cell(source, id=f"solution-{number}", metadata={"nbgrader": solution}),
        new_code_cell(f"assert {name}(3) == {3 * factor}", id=f"check-{number}", metadata={"nbgrader": check}),
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder of one notebook that takes three parameters, shows a picture and has two exercises."""
    cells = [
        new_markdown_cell("# 03 Tiny, after [00](00_start.ipynb)", id="card"),
        new_code_cell("n = 2  # how many\neps = 0.5\nwhere = None", id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell("assert n < 9, 'too many'\nprint(n * eps)", id="first"),
        new_code_cell(
            f"from IPython.display import HTML\n\nHTML('{PICTURE}')", id="picture", metadata={"tags": ["signature"]}
        ),
        *exercise(1, "double", 2, points=2),
        *exercise(2, "triple", 3, points=3),
    ]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    files.write(files.scrub(new_notebook(cells=cells)), folder / "03_tiny.ipynb")
    (folder / "profiles.yml").write_text(yaml.safe_dump({"cpu": {"03_tiny": {}}, "more": {"03_tiny": {"n": 4}}}))
    return folder


def printed(path) -> str:
    return "".join(o.get("text", "") for cell in files.read(path).cells for o in cell.get("outputs", []))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"parameter": ["m=3"]}, "03_tiny has no parameter 'm'; it has n, eps, where"),
        ({"parameter": ["n=many"]}, "n should be a int such as 2, got 'many'"),
        ({"parameter": ["n"]}, "NAME=VALUE, got 'n'"),
        ({"profile": "cpuu"}, "no profile 'cpuu'; there are cpu, more"),
        ({"names": ["04"]}, "no notebook '04'; there are 03_tiny"),
    ],
)
def test_run_refuses_what_it_does_not_know_before_anything_runs(folder, monkeypatch, wanted, message):
    monkeypatch.setattr(notebooks, "execute", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ModegptError, match=re.escape(message)):
        notebooks.run(folder=folder, **wanted)
    assert not (folder / "run").exists()


def test_a_profile_naming_an_unknown_parameter_or_notebook_is_refused(folder):
    for wrong in ({"03_tiny": {"m": 1}}, {"08_more": {}}):
        (folder / "profiles.yml").write_text(yaml.safe_dump({"cpu": wrong}))
        with pytest.raises(ModegptError, match=r"no parameter 'm'|no notebook '08_more'"):
            notebooks.run(folder=folder)


def test_parameters_are_yaml_and_go_over_the_profile(folder):
    plan = notebooks.planned(folder, ["tiny"], "more", ["eps=1e-3", "where=[1, 2]"])
    assert plan == {folder / "03_tiny.ipynb": {"n": 4, "eps": 0.001, "where": [1, 2]}}


@pytest.mark.slow
def test_run_repeats_only_what_changed(folder, capsys):
    finished = folder / "run" / "cpu" / "03_tiny.ipynb"
    notebooks.run(folder=folder, parameter=["n=3"])
    assert "1.5" in printed(finished)
    first = finished.stat().st_mtime_ns
    notebooks.run(folder=folder, parameter=["n=3"])
    assert finished.stat().st_mtime_ns == first and "up to date" in capsys.readouterr().out
    notebooks.run(folder=folder, parameter=["n=4"])
    assert "2.0" in printed(finished)


def test_changed_cells_parameters_or_package_change_the_fingerprint(folder, monkeypatch, tmp_path):
    path = folder / "03_tiny.ipynb"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("1")
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path / "package" / "code.py"))
    prints = {notebooks.fingerprint(path, {}), notebooks.fingerprint(path, {"n": 3})}
    assert notebooks.fingerprint(path, {}) in prints
    (tmp_path / "package" / "code.py").write_text("2")
    prints.add(notebooks.fingerprint(path, {}))
    notebook = files.read(path)
    notebook.cells[2].source += "\nprint(n)"
    files.write(notebook, path)
    prints.add(notebooks.fingerprint(path, {}))
    assert len(prints) == 4


@pytest.mark.slow
def test_a_failed_run_is_kept_as_failed_and_never_as_finished(folder):
    with pytest.raises(ModegptError, match=r"03_tiny, cell \[3\]: AssertionError: too many"):
        notebooks.run(folder=folder, parameter=["n=10"])
    assert [path.name for path in (folder / "run" / "cpu").iterdir()] == ["03_tiny.failed.ipynb"]
    notebooks.run(folder=folder)
    assert [path.name for path in (folder / "run" / "cpu").iterdir()] == ["03_tiny.ipynb"]


@pytest.mark.slow
def test_refresh_runs_in_place_and_leaves_nothing_of_this_machine(folder):
    notebooks.refresh(folder=folder)
    notebook = files.read(folder / "03_tiny.ipynb")
    assert notebook.metadata == files.METADATA
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(range(1, 8))
    assert [cell.id for cell in notebook.cells][:3] == ["card", "parameters", "first"]
    assert {key for cell in notebook.cells for key in cell.metadata} == {"tags", "nbgrader"}
    assert "1.0" in printed(folder / "03_tiny.ipynb")
    assert (folder.parent / "figures" / "03_tiny.png").read_bytes() == PNG
    assert (folder / "exercises" / "03_tiny.ipynb").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["03_tiny.ipynb", "exercises", "profiles.yml"]


@pytest.mark.slow
def test_refresh_leaves_a_notebook_that_fails_as_it_was(folder):
    notebook = files.read(folder / "03_tiny.ipynb")
    notebook.cells[2].source = "raise ValueError('no')"
    files.write(notebook, folder / "03_tiny.ipynb")
    before = (folder / "03_tiny.ipynb").read_bytes()
    with pytest.raises(ModegptError, match=r"cell \[2\]: ValueError: no"):
        notebooks.refresh(folder=folder)
    assert (folder / "03_tiny.ipynb").read_bytes() == before
    assert not (folder / "exercises").exists()


def test_exercises_lack_solutions_and_outputs_and_nothing_else(folder):
    (folder / "exercises").mkdir()
    (folder / "exercises" / "02_gone.ipynb").write_text("{}")
    notebooks.exercises(folder=folder)
    assert sorted(path.name for path in (folder / "exercises").iterdir()) == ["03_tiny.ipynb", "README.md"]
    whole, handed_out = (files.read(f / "03_tiny.ipynb") for f in (folder, folder / "exercises"))
    assert handed_out.cells[4].source == "def double(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    assert [cell.id for cell in handed_out.cells] == [cell.id for cell in whole.cells]
    assert [cell.metadata for cell in handed_out.cells] == [cell.metadata for cell in whole.cells]
    assert [a.id for a, b in zip(whole.cells, handed_out.cells, strict=True) if a.source != b.source] == [
        "solution-1",
        "solution-2",
    ]
    assert all(not cell.outputs and cell.execution_count is None for cell in handed_out.cells if "outputs" in cell)


def test_the_sheet_says_what_each_exercise_asks_and_gives():
    task = "## Exercises\n\n### Exercise 03.1: double\n\nDifficulty: 2 of 5, 10 minutes. Twice as much."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "03_tiny.ipynb")
        cells = [new_markdown_cell(task, id="task"), *exercise(1, "double", 2, points=2)]
        files.write(files.scrub(new_notebook(cells=cells)), path)
        assert files.sheet([path]).splitlines()[-1] == (
            "| [03.1](03_tiny.ipynb) | double | scaffold | 2 of 5 | 10 | 2 | `double` |"
        )
