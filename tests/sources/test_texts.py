"""Texts from a data folder and from local files, and their windows of tokens."""

import json
from pathlib import Path

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.sources import TEXTS, load_text, same_source, token_windows

PARTS = ("calibration", "evaluation")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MODEGPT_DATA_DIR of the usual layout."""
    folder = tmp_path / "data"
    for name in ("wikitext2-raw", "c4", "alpaca"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "valid", "test"):
        text = f" \n = {split} = \n \n It is\u2028one line . \n And another . \n"
        (folder / f"wikitext2-raw/wiki.{split}.raw").write_text(text, encoding="utf-8")
    (folder / "wikitext2-raw/train_first1MB_noblank.txt").write_text(" = part = \n It was c")
    (folder / "c4/c4_sample.txt").write_text("".join(f"page {i}\n" for i in [0, 1, 2, 3, 1, 4, 5]))
    items = [{"instruction": f"do {i}", "input": "with this" * (i % 2), "output": f"done {i}"} for i in range(10)]
    (folder / "alpaca/alpaca_data_1k.json").write_text(json.dumps([*items, items[0]]))
    monkeypatch.setenv("MODEGPT_DATA_DIR", str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "part", "split"),
    [
        ("wikitext2", "calibration", "train"),
        ("wikitext2", "evaluation", "test"),
        ("wikitext2:validation", "calibration", "valid"),
        ("wikitext2:validation", "evaluation", "valid"),
        ("wikitext2:train", "evaluation", "train"),
        ("wikitext2:test", "calibration", "test"),
    ],
)
def test_wikitext2_joins_the_rows_of_the_hub(data: Path, name: str, part: str, split: str):
    rows = ["", f" = {split} = \n", "", " It is\u2028one line . \n", " And another . \n"]
    assert load_text(name, part) == "\n\n".join(rows)


def test_wikitext2_train_falls_back_to_its_beginning(data: Path):
    (data / "wikitext2-raw/wiki.train.raw").unlink()
    assert load_text("wikitext2", "calibration") == " = part = \n\n\n It was c"


def test_c4_parts_share_no_document(data: Path):
    assert load_text("c4", "calibration") == "page 0\n\npage 1\n\npage 2"
    assert load_text("c4", "evaluation") == "page 3\n\npage 4\n\npage 5"


def test_alpaca_uses_its_prompt_template(data: Path):
    text = load_text("alpaca", "calibration")
    assert text.startswith(
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\ndo 0\n\n### Response:\ndone 0\n\n"
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\ndo 1\n\n### Input:\nwith this\n\n### Response:\ndone 1\n\n"
    )


def test_alpaca_is_split_by_item(data: Path):
    first, second = (load_text("alpaca", part) for part in PARTS)
    assert [first.count(f"\ndone {i}") for i in range(10)] == [1] * 8 + [0] * 2
    assert [second.count(f"\ndone {i}") for i in range(10)] == [0] * 8 + [1] * 2


@pytest.mark.parametrize("content", ["[{", '[{"instruction": "x"}]', "[1]"])
def test_damaged_alpaca(data: Path, content: str):
    (data / "alpaca/alpaca_data_1k.json").write_text(content)
    with pytest.raises(ModegptError, match=r"alpaca_data_1k.json is not a JSON list"):
        load_text("alpaca", "calibration")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("wikitext2:test", "wikitext2-raw/wiki.test.raw"),
        ("wikitext2:train", "wikitext2-raw/wiki.train.raw"),
        ("c4", "c4/c4_sample.txt"),
        ("alpaca", "alpaca/alpaca_data_1k.json"),
    ],
)
def test_data_folder_lacks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str):
    monkeypatch.setenv("MODEGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(ModegptError, match=rf"MODEGPT_DATA_DIR \({tmp_path}\) has no {file}"):
        load_text(name, "evaluation")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wikitext2:dev", "no split 'dev': use one of train, validation, test"),
        ("wikitext2:", "no split ''"),
        ("c4:train", "unknown text 'c4:train'"),
        ("wikitext", "use wiki-passages, wikitext2, c4, alpaca, or the path of a .txt or .jsonl file"),
        ("notes.md", "unknown text"),
        ("", "unknown text"),
    ],
)
def test_unknown_names(name: str, words: str):
    with pytest.raises(ModegptError, match=words):
        load_text(name, "calibration")


def test_every_text_states_its_licence():
    assert list(TEXTS) == ["wiki-passages", "wikitext2", "c4", "alpaca"]
    assert all("CC BY" in line or "ODC-By" in line for line in TEXTS.values())


@pytest.mark.parametrize("part", PARTS)
def test_local_files_are_whole_for_either_part(tmp_path: Path, part: str):
    (tmp_path / "a.txt").write_text("one\n\ntwo é\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\nmore", "id": 1}\n\n{"text": "two é"}\n', encoding="utf-8")
    assert load_text(str(tmp_path / "a.txt"), part) == "one\n\ntwo é\n"
    assert load_text(str(tmp_path / "b.jsonl"), part) == "one\nmore\n\ntwo é"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', 'a.jsonl, line 2: not a JSON object with a "text"'),
        ("a.jsonl", b'{"text": "x"}\n\n{"txt": "x"}', "a.jsonl, line 3: not a JSON object"),
        ("a.jsonl", b'["text"]', "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": 3}', 'line 1: its "text" is not a string'),
        ("a.jsonl", b'{"text": "\\ud83d"}', "line 1: .* half a character"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 100_000, 'line 2: not a JSON object with a "text"'),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, 'line 1: not a JSON object with a "text"'),
        ("a.jsonl", b"null", "line 1: not a JSON object"),
        ("a.jsonl", b"\xef\xbb\xbf", "a.jsonl holds no text"),
        ("a.txt", b"\xef\xbb\xbf", "a.txt holds no text"),
        ("a.txt", b"\xff\xfea\x00", "a.txt is not UTF-8 text"),
        ("a.jsonl", b"", "a.jsonl holds no text"),
        ("a.txt", b" \n", "a.txt holds no text"),
        ("a.txt", b"caf\xe9", "a.txt is not UTF-8 text"),
        ("a.txt", None, "cannot read the text file .*a.txt: No such file"),
    ],
)
def test_bad_local_files(tmp_path: Path, name: str, content: bytes | None, words: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModegptError, match=words):
        load_text(str(tmp_path / name), "calibration")


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n')
    parts = (load_text(str(tmp_path / name), "evaluation") for name in ("a.txt", "b.jsonl"))
    assert list(parts) == ["one", "one"]


def test_half_a_character_in_alpaca(data: Path):
    items = [{"instruction": "\ud83d", "input": "", "output": ""}]
    (data / "alpaca/alpaca_data_1k.json").write_text(json.dumps(items))
    with pytest.raises(ModegptError, match="half a character"):
        load_text("alpaca", "calibration")


def test_folder_named_like_a_text(tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ModegptError, match=r"cannot read the text file .*: Is a directory"):
        load_text(str(tmp_path / "a.txt"), "calibration")


def test_same_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert same_source("a.txt", str(tmp_path / "a.txt"))
    assert same_source("link.txt", "./a.txt")
    assert not same_source("a.txt", "b.txt")
    assert same_source("wikitext2:test", "wikitext2")
    assert same_source("wikitext2", "wikitext2:train")
    assert not same_source("wikitext2", "wikitext2")
    assert not same_source("wikitext2:validation", "wikitext2")
    assert not any(same_source(name, name) for name in TEXTS)


def test_windows_in_order_drop_the_tail(tokenizer):
    text = "abcdefghijk"
    windows = token_windows(text, tokenizer, None, 4)
    assert windows.dtype == torch.int64
    assert tokenizer.batch_decode(windows) == ["abcd", "efgh"]
    assert tokenizer.batch_decode(token_windows(text, tokenizer, 1, 4)) == ["abcd"]


def test_windows_by_seed_are_a_random_choice_in_random_order(tokenizer):
    text = "".join(chr(65 + i) * 3 for i in range(26))
    every = token_windows(text, tokenizer, None, 3).tolist()
    chosen = token_windows(text, tokenizer, 10, 3, seed=0)
    assert torch.equal(chosen, token_windows(text, tokenizer, 10, 3, seed=0))
    assert not torch.equal(chosen, token_windows(text, tokenizer, 10, 3, seed=1))
    places = [every.index(window) for window in chosen.tolist()]
    assert len(set(places)) == 10
    assert places != sorted(places)
    assert sorted(token_windows(text, tokenizer, None, 3, seed=0).tolist()) == every


def test_windows_do_not_depend_on_the_global_seed(tokenizer):
    text = "ab" * 50
    torch.manual_seed(1)
    first = token_windows(text, tokenizer, 5, 3, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, token_windows(text, tokenizer, 5, 3, seed=3))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [None, 0])
def test_of_a_huge_text_only_as_much_is_tokenized_as_is_needed(seed: int | None):
    lengths = []

    def counting(text: str, **_: object):
        lengths.append(len(text))
        return {"input_ids": list(text.encode())}

    text = "some words " * 2_000_000  # 22 million characters
    windows = token_windows(text, counting, 8, 64, seed)
    assert windows.shape == (8, 64) and lengths == [1_000_000]
    assert torch.equal(token_windows(text[:1_000_000], counting, 8, 64, seed), windows)


def test_a_huge_text_with_long_tokens_is_tokenized_further(tokenizer):
    lengths = []

    def stingy(text: str, **options: object):
        lengths.append(len(text))
        return {"input_ids": list(range(len(text) // 10_000))}

    assert token_windows("x" * 13_000_000, stingy, 4, 64).shape == (4, 64)
    assert lengths == [1_000_000, 8_000_000]


def test_an_ordinary_text_is_tokenized_whole(tokenizer):
    lengths = []
    token_windows(
        "x" * 12_000, lambda text, **_: lengths.append(len(text)) or {"input_ids": list(range(12_000))}, 1, 64
    )
    assert lengths == [12_000]


def test_bos_stands_once_at_the_front(bos_tokenizer):
    windows = token_windows("abcdefgh", bos_tokenizer, None, 3)
    assert (windows == 256).sum() == 1
    assert windows[0, 0] == 256


def test_text_longer_than_the_context_is_no_warning(tokenizer, caplog: pytest.LogCaptureFixture, capfd):
    assert tokenizer.model_max_length == 64
    token_windows("abc" * 100, tokenizer, None, 10)
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_too_little_text_says_how_many_tokens(tokenizer):
    with pytest.raises(ModegptError) as caught:
        token_windows("abcdefghi", tokenizer, 5, 2, seed=0, what="calibration text 'x'")
    assert str(caught.value).startswith(
        "calibration text 'x' has 9 tokens; 5 windows of 2 need 10: lower --samples or --seq-len"
    )
    assert token_windows("abcdefghij", tokenizer, 5, 2).shape == (5, 2)
    with pytest.raises(ModegptError, match="text has 2 tokens; 1 windows of 3 need 3"):
        token_windows("ab", tokenizer, None, 3)


@pytest.mark.parametrize(("samples", "seq_len"), [(0, 4), (-1, 4), (1, 1), (None, 0)])
def test_impossible_windows(tokenizer, samples: int | None, seq_len: int):
    with pytest.raises(ModegptError, match="must be at least"):
        token_windows("abcdefgh", tokenizer, samples, seq_len)


def test_no_tokenizer():
    with pytest.raises(ModegptError, match="has no tokenizer files"):
        token_windows("abc", None, 1, 2)
