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
from pathlib import Path

import modegpt
from modegpt import console
from modegpt.files import write_whole
from modegpt.study.report import Done

PACKAGE = Path(modegpt.__file__).parent


@dataclass(frozen=True)
class Step:
    """A command after `modegpt`.

    Parameters
    ----------
    name: in the report
    words: the command
    module: where its work is; the step is done again when this, or what it imports, changes
    notebook: for a notebook its file, which counts as well
    required: False if another machine may lack the means
    """

    name: str
    words: tuple[str, ...]
    module: str
    notebook: Path | None = None
    required: bool = False


def perform(step: Step, folder: Path) -> Done:
    """Run a step, unless it is finished; its words go to the screen and to a log."""
    slug = step.name.replace(" ", "-").replace("'", "")
    marker, log = folder / "steps" / f"{slug}.json", folder / "steps" / f"{slug}.log"
    command, made = shlex.join(["modegpt", *step.words]), fingerprint(step)
    try:
        known = json.loads(marker.read_text(encoding="utf-8"))
        if known.pop("fingerprint") == made and all((folder / name).exists() for name in known.pop("results")):
            console.out.print(f"{step.name}: finished before")
            return Done(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    console.out.print(f"{step.name}: {command}")
    log.parent.mkdir(parents=True, exist_ok=True)
    before, start, last = _files(folder), time.perf_counter(), ""
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
    done = Done(step.name, command, time.perf_counter() - start, problem)
    if problem is None:
        own = step.notebook.name if step.notebook else ""  # not written again where it was up to date
        now = _files(folder)
        results = sorted(name for name in now if before.get(name) != now[name] or Path(name).name == own)
        write_whole(marker, json.dumps(asdict(done) | {"fingerprint": made, "results": results}))
    else:
        console.err.print(f"{step.name} failed: {problem}", style="yellow")
    return done


def fingerprint(step: Step) -> str:
    """Of the command, of the notebook's cells, and of the package's modules that the work imports, comments aside."""
    digest, sources = hashlib.sha256(repr(step.words).encode()), []
    names = [step.module]
    if step.notebook:
        cells = json.loads(step.notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        names += [name for source in sources for name in _imports(ast.parse(source))]
    for text in (*sources, *(path.read_text(encoding="utf-8") for path in _closure(names))):
        digest.update(ast.dump(ast.parse(text)).encode())
    return digest.hexdigest()


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


def _files(folder: Path) -> dict[str, int]:
    """When each file of a folder was written, but for the markers and logs of steps."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "steps"]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}
