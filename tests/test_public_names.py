"""What code of one's own may build on is documented, and the reference made of it is whole and works offline."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modegpt

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
SUBMODULES = re.search(r"^API = modegpt \$\(addprefix modegpt\.,(.*)\)$", MAKEFILE, re.M)[1].split()
MODULES = ["modegpt", *(f"modegpt.{name}" for name in SUBMODULES)]


def public(name: str) -> dict[str, object]:
    """The functions and classes of a module's page: those of `__all__`, or those that the module itself defines."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = {n: getattr(module, n) for n in names}
    kinds = {n: thing for n, thing in found.items() if inspect.isfunction(thing) or inspect.isclass(thing)}
    return {n: thing for n, thing in kinds.items() if hasattr(module, "__all__") or thing.__module__ == name}


@pytest.mark.parametrize("name", [name for name in modegpt.__all__ if inspect.isfunction(getattr(modegpt, name))])
def test_a_public_function_says_what_each_parameter_is(name):
    function = getattr(modegpt, name)
    text = inspect.getdoc(function)
    assert [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", text)] == []


@pytest.mark.parametrize("module", MODULES)
def test_everything_in_the_reference_has_a_docstring(module):
    methods = {
        f"{name}.{method}": function
        for name, thing in public(module).items()
        if inspect.isclass(thing)
        for method, function in inspect.getmembers(thing, inspect.isfunction)
        if not method.startswith("_") and function.__module__.startswith("modegpt")
    }
    assert [name for name, thing in (public(module) | methods).items() if not inspect.getdoc(thing)] == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_api_writes_a_reference_that_needs_no_network(tmp_path):
    pytest.importorskip("pdoc", reason="the extra docs, which `make setup` installs")
    venv = Path(sys.executable).parents[1]
    made = ["make", "api", f"VENV={venv}", "-o", f"{venv}/.ready", f"ARGS=-o {tmp_path}"]  # -o: no set-up again
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr, done.stderr
    for name in MODULES:
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8")
        assert [n for n in public(name) if f'id="{n}"' not in page] == []
        assert not re.search(r'(?:src|@import)\s*=?\s*["\']?https?:|<link[^>]+https?:', page)
    assert (tmp_path / "search.js").stat().st_size > 10_000
