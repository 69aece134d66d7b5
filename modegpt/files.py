"""Files that are whole or not there, and JSON that every reader accepts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from modegpt.errors import ModegptError


def write_whole(file: Path, text: str) -> None:
    """Write `text` to `file` so that a half-written file never has its name."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise ModegptError(f"cannot write {file}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def to_json(results: Mapping[str, object]) -> str:
    """Strict JSON, which has neither NaN nor infinity: both become null."""
    plain = json.loads(json.dumps(results), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1) + "\n"
