"""Steps of `make reproduce`: commands that are not run again as long as their results and what made them are there."""

import ast
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import modegpt
from modegpt import console
from modegpt.files import write_whole

PACKAGE = Path(modegpt.__file__).parent


@dataclass(frozen=True)
class Step:
    """A command after `modegpt`.

    Parameters
    ----------
    name: in the report
    words: the command
    module: where its work is; the step is done again when this, or what it imports, changes
    required: False if another machine may lack the means
    """

    name: str
    words: tuple[str, ...]
    module: str
    required: bool = False

    @property
    def command(self) -> str:
        """As one types it."""
        return shlex.join(["modegpt", *self.words])

    @property
    def slug(self) -> str:
        """The name in file names."""
        return self.name.replace(" ", "-").replace("'", "")


@dataclass(frozen=True)
class Done:
    """How a step ended.

    `cpu_seconds` are those of all cores; `problem` is None if all went well; `results` are the files that it wrote, by
    their place in the folder of the run; `note` says why it was done again.
    """

    name: str
    command: str
    seconds: float
    cpu_seconds: float = 0.0
    problem: str | None = None
    results: tuple[str, ...] = ()
    note: str = ""


def finished(step: Step, folder: Path) -> Done | str:
    """How this very step ended before, or why it has to be done: "" if it never was."""
    done, made, changed = _before(step, folder)
    if done is None:
        return ""
    if made != fingerprint(step):
        return "what it uses has changed"
    return f"{', '.join(changed)} was changed or removed" if changed else done


def _before(step: Step, folder: Path) -> tuple[Done | None, str, list[str]]:
    """How a step of this name ended, its fingerprint then, and those of its results that are not as it left them."""
    try:
        known = json.loads((folder / "steps" / f"{step.slug}.json").read_text(encoding="utf-8"))
        digests, made = known.pop("digests"), known.pop("fingerprint")
        there = _digests(folder)
        changed = [name for name, digest in digests.items() if there.get(name) != digest]
        return Done(**known | {"results": tuple(digests)}), made, changed
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, "", []


def perform(step: Step, folder: Path, why: str = "", ahead: str = "") -> Done:
    """Run a step; its words go to the screen and to a log. `why` it is done again, and what is `ahead`, are told."""
    log = folder / "steps" / f"{step.slug}.log"
    console.out.print(f"{step.name}: {step.command}{f' (again: {why})' if why else ''}")
    if ahead:
        console.out.print(f"  {ahead}")
    log.parent.mkdir(parents=True, exist_ok=True)
    for name in _before(step, folder)[2]:  # its command goes on from no file that was changed by hand
        (folder / name).unlink(missing_ok=True)
    before, made, start, cpu, last = _written(folder), fingerprint(step), time.perf_counter(), _cpu_seconds(), ""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    with log.open("w", encoding="utf-8") as file:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        with (
            subprocess.Popen([sys.executable, "-m", "modegpt", *step.words], **options) as process,
            _ended_with_this(process),
        ):
            for line in process.stdout:
                file.write(line)
                console.out.print(f"  {line.rstrip()}")
                last = line.strip() or last
    problem = None if process.returncode == 0 else last.removeprefix("modegpt: ") or f"exit code {process.returncode}"
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    results = tuple(sorted(name for name, when in _written(folder).items() if before.get(name) != when))
    done = Done(step.name, step.command, seconds, cpu, problem, results, why)
    if problem is None:
        there = _digests(folder)
        marker = asdict(done) | {"fingerprint": made, "digests": {name: there[name] for name in results}}
        write_whole(folder / "steps" / f"{step.slug}.json", json.dumps(marker))
    else:
        console.err.print(f"{step.name} failed: {problem}", style="yellow")
    return done


def fingerprint(step: Step) -> str:
    """Of the command, of the libraries that compute, and of the modules that the work imports, but not their words."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    digest = hashlib.sha256(repr((step.words, libraries)).encode())
    for path in _closure([step.module]):
        digest.update(ast.dump(_without_docstrings(ast.parse(path.read_text(encoding="utf-8")))).encode())
    return digest.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


def _closure(names: list[str]) -> list[Path]:
    """The files of these modules of the package, and of all that they import, at the top or in a function."""
    found: dict[str, Path] = {}
    while names:
        name = names.pop()
        path = PACKAGE.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or name.split(".")[0] != "modegpt" or not path.exists():
            continue
        found[name] = path
        names += [name.rpartition(".")[0], *_imports(ast.parse(path.read_text(encoding="utf-8")))]
    return [found[name] for name in sorted(found)]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names of modules of the package; what the package itself exports counts as the module that it comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modegpt":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if node.module == "modegpt":  # it loads its names late, by text
                exported = [alias.name for alias in node.names if alias.name in modegpt.__all__]
                yield from (getattr(modegpt, name).__module__ for name in exported)


@contextmanager
def _ended_with_this(process: subprocess.Popen) -> Iterator[None]:
    """End the process when this one is ended, by SIGTERM too, which else would leave it at work."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a run, but for the markers and logs of its steps and the report."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and len(name.parts) + (path.suffix == ".png") > 1 and name.parts[0] != "steps":
            yield name.as_posix(), path


def _written(folder: Path) -> dict[str, int]:
    """When each file was."""
    return {name: path.stat().st_mtime_ns for name, path in _files(folder)}


def _digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder)}


def _cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system
