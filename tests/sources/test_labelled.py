import json

import pytest

from modegpt.errors import ModegptError
from modegpt.sources.labelled import TASKS, load_labelled


@pytest.mark.parametrize("name", TASKS)
def test_the_parts_share_no_text_and_hold_both_labels(name):
    train, test = load_labelled(name)
    assert not {text for text, _ in train} & {text for text, _ in test}
    assert {label for _, label in train} == {label for _, label in test} == {0, 1}
    assert 0.6 < len(train) / (len(train) + len(test)) < 0.8
    assert load_labelled(name) == (train, test)


def test_sst2_is_the_public_validation_set():
    train, test = load_labelled("sst2")
    assert len(train) + len(test) == 872
    assert ("it 's a charming and often affecting journey .", 1) in train + test


def test_a_file_is_read_and_split(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}", "label": i % 3}) + "\n" for i in range(60)))
    train, test = load_labelled(str(file))
    assert sorted(train + test) == sorted((f"text {i}", i % 3) for i in range(60))


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "a"}', "needs a text and a label"),
        ('{"text": "a", "label": "good"}', "needs a text and a label"),
        ('{"text": "a", "label": Infinity}', "needs a text and a label"),
        ("[" * 100_000, "needs a text and a label"),
        ('{"text": "\\ud83d", "label": 1}', "half a character"),
        ("no json", "needs a text and a label"),
        ("[1, 2]", "needs a text and a label"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1}', "no two kinds of labels"),
        ("", "no two kinds of labels"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(ModegptError, match=message):
        load_labelled(str(file))


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ModegptError, match="unknown task 'sst3'"):
        load_labelled("sst3")
    with pytest.raises(ModegptError, match="cannot read"):
        load_labelled(str(tmp_path / "none.jsonl"))
