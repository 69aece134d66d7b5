"""Grading a class of hand-ins of one tiny notebook, the odd ones among them."""

import csv
import json
import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from modegpt.course import grading
from modegpt.course.check import verdict
from modegpt.course.files import read, scrub, without_solutions, write
from modegpt.errors import ModegptError

pytestmark = pytest.mark.slow

pytest.importorskip("IPython", reason="the environment of `make setup` has it")


def exercise(number: int, name: str, factor: int, points: int) -> list:
    names = {"schema_version": 3, "task": False}
    solution = names | {"grade": False, "solution": True, "locked": False, "grade_id": f"ex-03-{number}"}
    check = names | {"grade": True, "solution": False, "locked": True, "grade_id": f"check-03-{number}"}
    source = f"def {name}(x):\n    ### BEGIN SOLUTION\n    return {factor} * x\n    ### END SOLUTION"
    test = f"from modegpt.course.check import expect\nexpect({name}(3) == {3 * factor}, 'not {factor} times as much')"
    return [
        new_code_cell(source, id=f"solution-{number}", metadata={"nbgrader": solution}),
        new_code_cell(test, id=f"check-{number}", metadata={"nbgrader": check | {"points": points}}),
    ]


@pytest.fixture
def source(tmp_path):
    """A notebook with solutions: cells 0 a lesson, 1 and 3 solutions, 2 and 4 their checks."""
    lesson = new_code_cell("factor = 2\nraise SystemError('the lesson takes an hour')", id="lesson")
    cells = [lesson, *exercise(1, "double", 2, points=2), *exercise(2, "triple", 3, points=3)]
    path = tmp_path / "notebooks" / "03_tiny.ipynb"
    write(scrub(new_notebook(cells=cells)), path)
    return path


@pytest.fixture
def hand_in(source, tmp_path):
    """hand_in(student, {cell: text}), or a text for the whole file, into the folder of all submissions."""

    def hand_in(student, changes, name="03_tiny.ipynb"):
        notebook = read(source)
        if isinstance(changes, dict):
            for index, text in changes.items():
                notebook.cells[index].source = text
        place = tmp_path / "submissions" / student / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(changes if isinstance(changes, str) else nbformat.writes(notebook), encoding="utf-8")

    return hand_in


@pytest.fixture
def graded(source, tmp_path):
    """graded() -> by student the cells of each row behind the student's name."""

    def graded(**options):
        table = tmp_path / "grades.csv"
        grading.grade(tmp_path / "submissions", {"03_tiny": source}, table, **options)
        with table.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["student", "exercise", "points", "of", "note", "look at"]
        found = {}
        for student, *row in rows:
            found.setdefault(student, []).append(row)
        return found

    return graded


FULL = [["03.1", "2", "2", "", ""], ["03.2", "3", "3", "", ""]]


def test_grading_gives_what_is_due(source, hand_in, graded, capsys):
    hand_in("right one", {})
    hand_in("right one", "what macOS leaves", name="._03_tiny.ipynb")
    hand_in(".ipynb_checkpoints", {})
    hand_in("deep", {}, name="homework/03_tiny.ipynb")
    hand_in("empty", nbformat.writes(without_solutions(read(source))))
    hand_in("absent", "", name="answers.zip")
    hand_in("renamed", {}, name="03_tiny (1).ipynb")
    hand_in("wrong", {1: "def double(x)\n    return 2 * x", 3: "def triple(x):\n    return x", 4: "assert True"})
    before = dict(os.environ)
    found = graded()
    assert dict(os.environ) == before
    assert list(found) == ["absent", "deep", "empty", "renamed", "right one", "wrong"]
    assert found["right one"] == found["deep"] == FULL
    assert [row[3] for row in found["absent"]] == ["not handed in", "not handed in"]
    assert found["empty"][0][1:4] == ["0", "2", "NotImplementedError"]
    assert found["renamed"][-1] == ["03_tiny (1).ipynb", "0", "0", grading.UNKNOWN, ""]
    assert found["wrong"] == [
        ["03.1", "0", "2", "SyntaxError: expected ':' (line 1)", ""],
        ["03.2", "0", "3", "Not yet: not 3 times as much", "its check cell was changed"],
    ]
    assert "wrong, 03_tiny: 0 of 5 points" in capsys.readouterr().out


def test_one_odd_hand_in_is_that_students_note(hand_in, graded):
    texts = {"a": "{", "b": "[]", "c": "null", "d": '{"nbformat": 4, "cells": 7}', "e": "[" * 100_000}
    for student, text in texts.items():
        hand_in(student, text)
    hand_in("f", "")
    hand_in("fine", {})
    found = graded()
    assert found.pop("fine") == FULL
    assert all(row[1] == "0" and row[3] for rows in found.values() for row in rows)
    assert found["b"][0][3] == "03_tiny.ipynb is no notebook that can be read"


def test_grading_survives_what_editors_do_to_cells(source, hand_in, graded):
    copied, renamed, bare, without, retyped, odd = (read(source) for _ in range(6))
    for index in (2, 1):
        copied.cells.insert(index, new_code_cell(copied.cells[index].source, metadata=copied.cells[index].metadata))
    renamed.cells[1].metadata.nbgrader["grade_id"] = "mine"
    for cell in bare.cells:
        cell.metadata.pop("nbgrader", None)
    del without.cells[2]  # the check of 03.1
    del without.cells[2]  # and the solution of 03.2
    retyped.cells[4] = new_markdown_cell(retyped.cells[4].source, id="note", metadata=retyped.cells[4].metadata)
    odd.cells[1].metadata["nbgrader"] = "a string"
    del odd.cells[2]["outputs"]
    for student in ("copied", "renamed", "bare", "without", "retyped", "odd"):
        hand_in(student, json.dumps(locals()[student]))
    found = graded()
    assert found.pop("without") == [FULL[0], ["03.2", "0", "3", "NameError: name 'triple' is not defined", ""]]
    assert {student: rows for student, rows in found.items() if rows != FULL} == {}


def test_a_dead_or_endless_kernel_costs_its_own_exercise(hand_in, graded, monkeypatch):
    monkeypatch.setitem(grading.SECONDS, False, 4)
    hand_in("dead", {1: "import os\nos._exit(1)"})
    hand_in("dead when called", {1: "def double(x):\n    import os\n    os._exit(1)"})
    hand_in("endless", {1: "while True:\n    pass"})
    hand_in("leaves", {0: "exit()\nimport sys\nsys.exit(0)"})
    found = graded()
    assert found.pop("leaves")[1][1] == "3"
    assert [rows[0][1:3] for rows in found.values()] == [["0", "2"]] * 3
    assert [rows[1][1] for rows in found.values()] == ["3"] * 3
    assert found["dead when called"][0][3] == "KernelDied: the kernel died (out of memory?)"


def test_a_call_that_does_not_end_is_said_to_be_one(source, hand_in, graded, monkeypatch):
    monkeypatch.setattr(verdict, "SECONDS", 2)
    notebook = read(source)
    notebook.cells[2].source = "from modegpt.course.check.verdict import answer\nassert answer(double, 3) == 6"
    write(notebook, source)
    hand_in("endless", {1: "def double(x):\n    while True:\n        pass"})
    first, second = graded()["endless"]
    assert "no result after 2 s, does every loop end?" in first[3]
    assert second[1] == "3"


TRICKS = {
    "defines check": "class check:\n    double = print\ndef double(x):\n    return x",
    "is equal to all": "class A:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return A()",
    "patches the package": "import modegpt.course.check.verdict as v\nv.expect = print\ndef double(x):\n    return x",
    "patches builtins": "import builtins\nbuiltins.exec = print\ndef double(x):\n    return x",
    "transforms": "get_ipython().input_transformers_post.append(lambda lines: [])\ndef double(x):\n    return x",
    "is a float": "class F(float):\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return F(x)",
}


def test_what_is_no_answer_gets_nothing_and_is_flagged(hand_in, graded):
    for student, text in TRICKS.items():
        hand_in(student, {1: text})
    for student, (first, second) in graded().items():
        assert first[1] == "0" and first[4], student
        assert not second[4], student


def test_answers_run_in_a_folder_with_nothing_in_it_and_without_secrets(hand_in, graded, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    look = (
        "import os\nleft = [n for n in os.listdir() if n[0] != '.' and n not in ('profile_default', 'nbextensions')]\n"
    )
    hand_in("ann", {1: look + "def double(x):\n    return (left, os.environ.get('HF_TOKEN')) == ([], None) and 2 * x"})
    (first, _) = graded()["ann"]
    assert first[1] == "2", first


def test_no_control_character_reaches_the_terminal_or_the_table(hand_in, graded, capsys):
    hand_in(
        "\x1b[31mred", {1: "def double(x):\n    raise ValueError('\\x1b]0;title\\x07\\u202e')", 0: "print('\\x1b[2J')"}
    )
    ((student, rows),) = graded().items()
    written = capsys.readouterr().out + student + rows[0][3]
    assert "ValueError" in rows[0][3] and "red" in student
    assert [c for c in written if not c.isprintable() and c not in "\n"] == []


def test_lessons_run_where_they_are_wanted(hand_in, graded):
    hand_in("leans on the lesson", {1: "def double(x):\n    return factor * x"})
    assert graded()["leans on the lesson"][0][1] == "0"
    assert graded(lessons=True)["leans on the lesson"] == FULL


def test_what_was_graded_is_on_disk_when_the_grading_is_stopped(hand_in, graded, tmp_path, monkeypatch):
    hand_in("ann", {})
    hand_in("bob", {})
    marks = grading._marks

    def stopped(*arguments):
        if "ann" in (tmp_path / "grades.csv").read_text(encoding="utf-8"):
            raise KeyboardInterrupt
        return marks(*arguments)

    monkeypatch.setattr(grading, "_marks", stopped)
    with pytest.raises(KeyboardInterrupt):
        graded()
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8").splitlines()[1:] == [
        "ann,03.1,2,2,,",
        "ann,03.2,3,3,,",
    ]


def test_nothing_to_grade_is_refused_and_leaves_an_older_table(hand_in, graded, tmp_path):
    (tmp_path / "grades.csv").write_text("older")
    hand_in("ann", "{}", name="homework.ipynb")
    with pytest.raises(ModegptError, match="nothing to grade"):
        graded()
    assert (tmp_path / "grades.csv").read_text() == "older"
