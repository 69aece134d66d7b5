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
SHAPE = re.compile(r"\((?:[\w.*/ +-]+,(?: [\w.*/ +-]+)?)+\)|scalar|0-dim|\bshapes?\b|\b[Ss]ee\b")


def public(name: str) -> list[tuple[str, object]]:
    """The functions and classes of a module's page: those of `__all__`, or those that the module itself defines."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = [(n, getattr(module, n)) for n in names]
    kinds = [(n, thing) for n, thing in found if inspect.isfunction(thing) or inspect.isclass(thing)]
    return [(n, thing) for n, thing in kinds if hasattr(module, "__all__") or thing.__module__ == name]


DOCUMENTED = {f"{module}.{name}": thing for module in MODULES for name, thing in public(module)}


@pytest.mark.parametrize("name", modegpt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(modegpt, name).__module__.startswith("modegpt")


@pytest.mark.parametrize("name", [name for name in modegpt.__all__ if inspect.isfunction(getattr(modegpt, name))])
def test_a_public_function_says_what_it_takes_and_what_it_raises(name):
    text = inspect.getdoc(getattr(modegpt, name))
    assert "Raises" in text and "ModegptError" in text
    assert [p for p in inspect.signature(getattr(modegpt, name)).parameters if not re.search(rf"\b{p}\b", text)] == []


def test_the_paper_and_the_units_are_named():
    assert "arXiv 2408.09632" in inspect.getdoc(modegpt.compress)
    assert "share of the parameters" in inspect.getdoc(modegpt.compress)
    assert "predicted tokens" in inspect.getdoc(importlib.import_module("modegpt.evaluate").Perplexity)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_everything_in_the_reference_has_a_docstring_with_shapes(name):
    thing = DOCUMENTED[name]
    functions = [thing] if inspect.isfunction(thing) else [m for _, m in inspect.getmembers(thing, inspect.isfunction)]
    about = inspect.getdoc(thing) or ""
    assert about.strip()
    for function in functions:
        if function.__name__.startswith("_") or not function.__module__.startswith("modegpt"):
            continue
        text = inspect.getdoc(function)
        assert text, f"{function.__qualname__} has no docstring"
        if any(re.search(r"\b(Long)?Tensor\b", str(hint)) for hint in function.__annotations__.values()):
            assert SHAPE.search(f"{about} {text}"), f"{function.__qualname__}: which shapes?"


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
        assert [n for n, _ in public(name) if f'id="{n}"' not in page] == []
        assert not re.search(r'(?:src|@import)\s*=?\s*["\']?https?:|<link[^>]+https?:', page)
    assert (tmp_path / "search.js").stat().st_size > 10_000
