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
from modegpt.study.steps import Step, fingerprint, perform

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules: work imports used, late, and the table of used; nobody imports other."""
    texts = {
        "__init__": "",
        "work": "from modegpt.used import table\n\ndef run():\n    from modegpt import late\n    return table, late\n",
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


def test_the_command_and_the_notebook_count(package):
    path = package / "03_tiny.ipynb"
    prints = {fingerprint(STEP), fingerprint(Step("a step", ("another",), "modegpt.work"))}
    for source in ("x = 1", "x = 1  # one", "x = 2", "import modegpt.other"):
        path.write_text(writes(new_notebook(cells=[new_code_cell(source)])))
        prints.add(fingerprint(Step("a step", ("a", "verb"), "modegpt.work", path)))
    (package / "other.py").write_text("value = 4\n")
    prints.add(fingerprint(Step("a step", ("a", "verb"), "modegpt.work", path)))
    assert len(prints) == 6  # the comment made no difference


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
def test_a_step_whose_result_is_gone_is_run_again(folder, capsys):
    step = Step("exercises", ("course", "exercises", "--folder", str(folder)), "modegpt.course.files")
    assert perform(step, folder).problem is None
    assert perform(step, folder).problem is None
    assert capsys.readouterr().out.count("finished before") == 1
    made = folder / "exercises" / "03_tiny.ipynb"
    made.unlink()
    perform(step, folder)
    assert made.exists() and "finished before" not in capsys.readouterr().out


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
