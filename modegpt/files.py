"""Files that are whole or not there, and JSON that every reader accepts."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from modegpt.errors import ModegptError


def beside(path: Path, kind: str) -> Path:
    """A hidden name beside `path` that nobody else has, for what is on its way there or away."""
    return path.with_name(f".{path.name[:60]}.{uuid4().hex[:12]}.{kind}")


def write_whole(file: Path, text: str) -> None:
    """Write `text` to `file` so that a half-written file never has its name.

    A link stays, and what it points to is replaced; permissions stay; a device or a pipe is written to.
    """
    target = file.resolve()
    partial = beside(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
            return
        partial.write_text(text, encoding="utf-8")
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o7777)
        os.replace(partial, target)
    except OSError as error:
        raise ModegptError(f"cannot write {file}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def to_json(results: Mapping[str, object]) -> str:
    """Strict JSON, which has neither NaN nor infinity: both become null."""
    plain = json.loads(json.dumps(results), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1) + "\n"
