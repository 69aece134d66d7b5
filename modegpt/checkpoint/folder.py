"""Writing a compressed model so that a folder is either complete or not there."""

import json
import os
import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from modegpt.checkpoint.card import CARD_FILE, measured_again, model_card
from modegpt.errors import ModegptError
from modegpt.files import beside, to_json, write_whole
from modegpt.modeling import COMPRESSED
from modegpt.sources.hub import quiet_transformers

REPORT_FILE = "modegpt_report.json"
READ_ALL_THE_SAME = {"head_dim", "rewritten_from"}  # by classes that do not declare them
WEIGHTS = ("*.safetensors", "*.bin")
PARTS = (  # of a checkpoint; a folder that holds anything else is not ours to replace
    *WEIGHTS,
    *("config.json", "generation_config.json", "*.safetensors.index.json", "*.bin.index.json"),
    *("tokenizer*.json", "tokenizer*.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.*", "modeling_*.py", "configuration_*.py"),
    *(CARD_FILE, REPORT_FILE, "LICENSE*", ".gitattributes"),
)
LONGEST_NAME = 230  # bytes; file systems take 255, and a run that goes on later has a longer name beside it
TOKENIZER_ENTRIES = {
    *("tokenizer_class", "model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "split_special_tokens"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "spaces_between_special_tokens", "errors", "legacy"),
    *("model_input_names", "chat_template", "response_schema", "use_default_system_prompt", "fix_mistral_regex"),
    *("byte_fallback", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "trim_offsets", "model_specific"),
}


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ModegptError if `folder` is taken or cannot be made, before any work is spent.

    With `overwrite` a checkpoint may be replaced, and nothing else: a folder with weights and no file of another kind.
    """
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
        raise ModegptError(f"the name {folder.name[:40]}... is too long: give one of at most {LONGEST_NAME} bytes")
    if folder.exists() and not folder.is_dir():
        raise ModegptError(f"{folder} is a file, a folder is needed")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ModegptError(f"{folder} is or holds the current folder, which cannot be replaced: name another folder")
    if folder.is_mount():
        raise ModegptError(f"{folder} is a mount point, which cannot be replaced: name a folder below it")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ModegptError(f"{folder} already holds something: name another folder, or add --overwrite")
        if foreign := _foreign(folder):
            raise ModegptError(f"{folder} is no checkpoint that may be replaced ({foreign}): name another folder")
    parent = next(parent for parent in folder.resolve().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ModegptError(f"cannot write {folder}: {parent} is no folder that you may write to")


def _foreign(folder: Path) -> str:
    """What tells a folder from a checkpoint, "" if nothing does."""
    names = sorted(folder.iterdir())
    for path in names:
        if path.is_dir() or not any(path.match(part) for part in PARTS):
            return f"it holds {path.name}"
    return "" if any(path.match(kind) for path in names for kind in WEIGHTS) else "it has no weights"


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
    meta device is written. Everything is written beside `folder`, in a folder of this call's own, and moved there at
    the end. Whatever goes wrong before, Ctrl-C included, leaves `folder` as it was. Of two writers one gets the folder.

    Raises:
        ModegptError: the folder is taken, or the disk refuses (full, read-only, not allowed).
    """
    check_output(folder, overwrite)
    target = folder.resolve()  # a link stays, what it points to is replaced
    partial, old = beside(target, "partial"), beside(target, "old")
    try:
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
        _keep_known(partial, model)
        _name_rotary_as_before(partial / "config.json")
        (partial / REPORT_FILE).write_text(to_json(report))
        if "method" in report:
            stock, kind = "auto_map" not in json.loads((partial / "config.json").read_text()), model.config.model_type
            origin = getattr(model.config, "rewritten_from", None)
            architecture = f"{origin}, rewritten as {COMPRESSED.get(kind, kind)}" if origin else None
            (partial / CARD_FILE).write_text(model_card(report, stock, architecture), encoding="utf-8")
        for file in partial.glob("*.safetensors"):  # safetensors makes them private
            file.chmod((partial / REPORT_FILE).stat().st_mode)
        if target.exists():
            check_output(folder, overwrite)  # another may have been faster
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


def _keep_known(folder: Path, model: PreTrainedModel) -> None:
    """Keep the entries of the configs that their classes know: the source's own may name code, or places."""
    known = type(model.config)().to_dict().keys() - {"_name_or_path"} | READ_ALL_THE_SAME
    if type(model).__module__.startswith("modegpt."):
        known = known | {"auto_map"}
    _drop_others(folder / "config.json", known)
    if (file := folder / "generation_config.json").is_file():
        _drop_others(file, GenerationConfig().to_dict().keys())


def _drop_others(file: Path, known: Container[str]) -> None:
    entries = json.loads(file.read_text(encoding="utf-8"))
    _write_json(file, {name: value for name, value in entries.items() if name in known})


def _name_rotary_as_before(file: Path) -> None:
    """Tools older than transformers 5 look for rope_theta and rope_scaling, and silently take 10,000 without."""
    config = json.loads(file.read_text())
    if rotary := config.get("rope_parameters"):
        config["rope_theta"] = rotary["rope_theta"]
        if rotary.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rotary.items() if name != "rope_theta"}
        _write_json(file, config)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 can open it too, with known entries only: no place, no code."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    _drop_others(file, TOKENIZER_ENTRIES)
    entries = json.loads(file.read_text(encoding="utf-8"))
    if entries.get("tokenizer_class") == "TokenizersBackend":  # the newer name of the same class
        entries["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(file, entries)


def _write_json(file: Path, entries: Mapping[str, object]) -> None:
    file.write_text(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


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
        card = measured_again(card, report)
        write_whole(folder / CARD_FILE, card)
        write_whole(folder / REPORT_FILE, to_json(report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True
