"""What goes into a results file and into a folder that travels."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modegpt.console import command_line
from modegpt.files import to_json, write_whole


def write_json(file: Path | None, results: Mapping[str, object]) -> None:
    """Write results as strict JSON, whole or not at all; without a file, do nothing."""
    if file is not None:
        write_whole(file, to_json(results))


def provenance(device: Any) -> dict[str, object]:
    """Versions, hardware and the command line."""
    from modegpt.machine import environment

    return environment(device) | {"command": command_line()}


def without_places(facts: Mapping[str, object]) -> dict[str, object]:
    """What goes into a folder that travels: names of files and folders, but not where they lie."""
    places = {key: str(facts[key]) for key in ("model", "calibration") if key in facts}
    names = {key: Path(place).name if Path(place).expanduser().exists() else place for key, place in places.items()}
    return {**facts, **names, "command": command_line(places=False)}


def report_of(folder: Path) -> dict[str, object]:
    """What compress noted in its folder; nothing if it did not, or someone spoilt it."""
    from modegpt.checkpoint.folder import REPORT_FILE

    try:
        return dict(json.loads((folder / REPORT_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def sha256(text: str) -> str:
    """Of a text, to know it again."""
    return hashlib.sha256(text.encode()).hexdigest()


def interactive() -> bool:
    """Whether somebody watches: then progress is shown."""
    return sys.stderr.isatty()
