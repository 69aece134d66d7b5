"""Writing a compressed model so that a folder is either complete or not there."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt.checkpoint.card import CARD_FILE, MEASURED, measured_part, model_card
from modegpt.errors import ModegptError
from modegpt.files import to_json, write_whole
from modegpt.sources.hub import quiet_transformers

REPORT_FILE = "modegpt_report.json"


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ModegptError if `folder` is taken or cannot be made, before any work is spent."""
    if folder.exists() and not folder.is_dir():
        raise ModegptError(f"{folder} is a file, a folder is needed")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ModegptError(f"{folder} is or holds the current folder, which cannot be replaced: name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ModegptError(f"{folder} already holds something: name another folder, or add --overwrite")
    parent = next(parent for parent in folder.resolve().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ModegptError(f"cannot write {folder}: {parent} is no folder that you may write to")


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Mapping[str, object],
    overwrite: bool = False,
    shards: Sequence[Path] = (),
) -> None:
    """Save model, tokenizer, report and model card as one Hugging Face folder, safetensors only.

    With `shards`, safetensors files that hold the layers, these are linked in, and of the model only what is not on the
    meta device is written. Everything is written beside `folder` and moved there at the end. Whatever goes wrong
    before, Ctrl-C included, leaves `folder` as it was.

    Raises:
        ModegptError: the folder is taken, or the disk refuses (full, read-only, not allowed).
    """
    check_output(folder, overwrite)
    target = folder.resolve()  # a link stays, what it points to is replaced
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        with quiet_transformers():
            if shards:
                rest = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
                model.save_pretrained(partial, state_dict=rest)
                _adopt(partial, shards)
            else:
                model.save_pretrained(partial)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)
        _name_rotary_as_before(partial / "config.json")
        (partial / REPORT_FILE).write_text(to_json(report))
        if "method" in report:
            stock = "auto_map" not in json.loads((partial / "config.json").read_text())
            (partial / CARD_FILE).write_text(model_card(report, stock))
        for file in partial.glob("*.safetensors"):  # safetensors makes them private
            file.chmod((partial / REPORT_FILE).stat().st_mode)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        partial.rename(target)
    except Exception as error:
        # tokenizers raises a bare Exception when it cannot write
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        raise ModegptError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _adopt(folder: Path, shards: Sequence[Path]) -> None:
    """Make one sharded checkpoint of model.safetensors and the shards, in the names that `from_pretrained` knows."""
    places, size, files = {}, 0, [folder / "model.safetensors", *shards]
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with safe_open(file, "pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), name)
        size += file.stat().st_size
        if file.parent == folder:
            file.rename(folder / name)
        else:
            _share(file, folder / name)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _share(file: Path, place: Path) -> None:
    """Link a file, or copy it where there are no links: should the rest fail, it still lies where it was made."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _name_rotary_as_before(file: Path) -> None:
    """Tools older than transformers 5 look for rope_theta and rope_scaling, and silently take 10,000 without."""
    config = json.loads(file.read_text())
    if rotary := config.get("rope_parameters"):
        config["rope_theta"] = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rotary.items() if name != "rope_theta"}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 can open it too, and without the place where it was read."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text())
    if entries.get("tokenizer_class") == "TokenizersBackend":  # the newer name of the same class
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("backend", "is_local", "local_files_only"):
        entries.pop(name, None)
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def add_evaluation(folder: Path, row: Mapping[str, object]) -> bool:
    """Note a measured perplexity in the report and the model card of a compressed folder; True if that was done.

    A row of the same text, windows and precision is replaced; of the card only the table changes. A folder that is no
    result of `modegpt compress`, or may not be written to, stays as it is.
    """
    what = ("text", "windows", "seq_len", "dtype")
    try:
        report = json.loads((folder / REPORT_FILE).read_text())
        card = (folder / CARD_FILE).read_text()
        others = [old for old in report.get("evaluations", []) if any(old[key] != row[key] for key in what)]
        report = json.loads(to_json(report | {"evaluations": [*others, row]}))
        card = MEASURED.sub(lambda _: measured_part(report), card)
        write_whole(folder / CARD_FILE, card)
        write_whole(folder / REPORT_FILE, to_json(report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True
