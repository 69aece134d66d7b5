"""A step is run again when its results or what made them have gone or changed, and not otherwise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, writes

from modegpt.study import steps
from modegpt.study.steps import Step, fingerprint, finished, perform

ROOT = Path(__file__).resolve().parents[2]


WORK = "from modegpt.used import table\n\ndef run():\n    from modegpt import late\n    return table, late\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules: work imports used, late, and the table of used; nobody imports other."""
    texts = {
        "__init__": "",
        "work": WORK,
        "used": "table = 1  # a comment\n",
        "late": "value = 2\n",
        "other": "value = 3\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(steps, "PACKAGE", tmp_path)
    return tmp_path


STEP = Step("a step", ("a", "verb"), "modegpt.work")


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("used.py", "# another comment\ntable = 1\n", True),
        ("used.py", '"""Words."""\n\ntable = 1\n', True),
        ("work.py", WORK.replace("def run():", 'def run():\n    """Words."""'), True),
        ("other.py", "value = 4\n", True),
        ("used.py", "table = 2\n", False),
        ("late.py", "value = 3\n", False),
        ("__init__.py", "value = 3\n", False),
    ],
)
def test_only_what_the_work_imports_counts_and_comments_do_not(package, file, text, same):
    before = fingerprint(STEP)
    (package / file).write_text(text)
    assert (fingerprint(STEP) == before) is same


def test_the_command_and_the_libraries_count(package, monkeypatch):
    prints = {fingerprint(STEP), fingerprint(Step("a step", ("another",), "modegpt.work"))}
    monkeypatch.setattr(steps, "version", lambda _: "99")
    assert len(prints | {fingerprint(STEP)}) == 3


def test_what_the_package_exports_counts_as_its_own_module():
    names = [path.relative_to(steps.PACKAGE).as_posix() for path in steps._closure(["modegpt.study.compare"])]
    assert {"pipeline.py", "decompose/nystrom.py", "study/compare.py", "__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith(("course/", "cli"))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one notebook, whose cell takes a minute."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = new_notebook(cells=[new_code_cell("import time\ntime.sleep(60)")])
    (tmp_path / "03_tiny.ipynb").write_text(writes(notebook))
    (tmp_path / "profiles.yml").write_text("cpu: {03_tiny: {}}")
    return tmp_path


@pytest.mark.slow
def test_a_step_whose_result_is_gone_or_changed_is_to_be_done_again(folder):
    step = Step("exercises", ("course", "exercises", "--folder", str(folder)), "modegpt.course.files")
    assert finished(step, folder) == ""
    done = perform(step, folder)
    made = folder / "exercises" / "03_tiny.ipynb"
    assert done.problem is None and done.seconds > 0 and done.cpu_seconds > 0
    assert made.relative_to(folder).as_posix() in done.results and finished(step, folder) == done
    text = made.read_text()
    made.write_text(text + " ")
    assert finished(step, folder) == "exercises/03_tiny.ipynb was changed or removed"
    made.write_text(text)
    assert finished(step, folder) == done
    made.write_text(text + " ")
    assert finished(Step(step.name, step.words, "modegpt.errors"), folder) == "what it uses has changed"
    assert perform(step, folder, "a reason").note == "a reason" and made.read_text() == text
    made.unlink()
    assert "03_tiny.ipynb was changed or removed" in finished(step, folder)


@pytest.mark.slow
def test_ending_the_parent_ends_the_command(folder):
    words = ("course", "run", "03", "--folder", str(folder))
    program = f"from modegpt.study.steps import *\nperform(Step('slow', {words}, 'modegpt.course.files'), Path('.'))"
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, env=os.environ)
    assert b"slow: modegpt course run" in parent.stdout.readline()
    children = []
    while not children:
        children = psutil.Process(parent.pid).children()
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(children, timeout=30)[1]
