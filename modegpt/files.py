"""Files that are whole or not there, and JSON that every reader accepts."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from modegpt.errors import ModegptError

MARK = "made by modegpt"  # in what we write beside a results file, and may replace
STREAMS = ("/dev/std", "/dev/fd/", "/proc/self/fd/")  # of this process


def beside(path: Path, kind: str) -> Path:
    """A hidden name beside `path` that nobody else has, for what is on its way there or away."""
    return path.with_name(f".{path.name[:40]}.{uuid4().hex[:12]}.{kind}")


def write_whole(file: Path, text: str) -> None:
    """Write `text` to `file` so that a half-written file never has its name.

    A link stays, and what it points to is replaced; permissions stay; a device or a pipe is written to.
    """
    target = file.resolve()
    partial = beside(target, "partial")
    try:
        if _in_place(file):
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o7777)
        os.replace(partial, target)
    except OSError as error:
        raise ModegptError(f"cannot write {file}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def check_file(option: str, file: Path | None) -> None:
    """Raise ModegptError if the `file` that an option names could not be written, before any work is spent."""
    if file is None:
        return
    try:
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise ModegptError(f"{option} {file}: give a file in a folder that exists")
        if _in_place(file):
            _check_device(file)
            return
        target = file.resolve()
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(0, "you may not write to it")
        trial = beside(target, "partial")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ModegptError(f"{option} {file}: {error.strerror}") from error


def check_folder(option: str, folder: Path) -> None:
    """Raise ModegptError if the `folder` that an option names is neither there nor can be made, or is read-only."""
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise ModegptError(f"{option} {folder}: {error.strerror}") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ModegptError(f"{option} {folder}: {there} is no folder that you may write to")


def check_ours(files: Iterable[Path], overwrite: bool) -> None:
    """Raise ModegptError for a file that exists and does not carry our mark, unless it may be overwritten."""
    for file in files:
        theirs = file.exists() and not (file.is_file() and MARK.encode() in file.read_bytes())
        if file.is_dir() or (theirs and not overwrite):
            raise ModegptError(f"{file} would be replaced, and modegpt did not write it: give --out another name")


def to_json(results: Mapping[str, object]) -> str:
    """Strict JSON, which has neither NaN nor infinity: both become null."""
    plain = json.loads(json.dumps(results), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1) + "\n"


def _in_place(file: Path) -> bool:
    return (file.exists() and not file.is_file()) or str(file.absolute()).startswith(STREAMS)


def _check_device(file: Path) -> None:
    """A full device says so only when something is written: an empty line, which JSON may begin with."""
    if file.is_char_device():
        with file.open("a") as device:
            if not device.isatty():
                device.write("\n")
    elif not os.access(file, os.W_OK):
        raise PermissionError(0, "you may not write to it")
