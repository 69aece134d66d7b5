"""Writing a compressed model so that a folder is either complete or not there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt.errors import ModegptError
from modegpt.sources.hub import quiet_transformers

REPORT_FILE = "modegpt_report.json"


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ModegptError if `folder` is taken, before any work is spent."""
    if folder.is_file():
        raise ModegptError(f"{folder} is a file, a folder is needed")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ModegptError(f"{folder} already holds something: name another folder, or add --overwrite")


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Save model, tokenizer and report as one Hugging Face folder, safetensors only.

    Everything is written beside `folder` and moved there at the end. Whatever goes wrong before, Ctrl-C included,
    leaves `folder` as it was.

    Raises:
        ModegptError: the folder is taken, or the disk refuses (full, read-only, not allowed).
    """
    check_output(folder, overwrite)
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        with quiet_transformers():
            model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ModegptError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
