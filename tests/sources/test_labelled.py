import json

import pytest

from modegpt.errors import ModegptError
from modegpt.sources.labelled import TASKS, load_labelled

KINDS = {"sst2": 2, "mrpc": 2, "rte": 2, "mmlu-groups": 4, "math-subjects": 7, "wikihow-topics": 9}
LARGE = {"mmlu-groups": 10_060, "math-subjects": 5000, "wikihow-topics": 6075}  # different texts


@pytest.mark.parametrize("name", TASKS)
def test_the_parts_share_no_text_and_hold_all_labels(name):
    train, test = load_labelled(name)
    assert not {text for text, _ in train} & {text for text, _ in test}
    assert {label for _, label in train} == {label for _, label in test} == set(range(KINDS[name]))
    assert len(train) + len(test) == LARGE.get(name, len(train) + len(test))
    assert 0.6 < len(train) / (len(train) + len(test)) < 0.8
    assert load_labelled(name) == (train, test)


def test_sst2_is_the_public_validation_set():
    train, test = load_labelled("sst2")
    assert len(train) + len(test) == 872
    assert ("it 's a charming and often affecting journey .", 1) in train + test


def test_the_large_tasks_have_the_labels_of_their_sources():
    found = {name: {text: label for part in load_labelled(name) for text, label in part} for name in LARGE}
    assert found["math-subjects"]["How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$ have?"] == 0
    for word, label in (("kinetic energy", 0), ("defendant", 1), ("aggregate demand", 2), ("patient", 3)):
        labels = [found["mmlu-groups"][text] for text in found["mmlu-groups"] if word in text]
        assert labels.count(label) > len(labels) / 2, word
    pets = [text for text, label in found["wikihow-topics"].items() if label == 7]
    assert sum(any(word in text for word in ("dog", "cat", "pet", "horse", "rabbit")) for text in pets) > len(pets) / 2


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
