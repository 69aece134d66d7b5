"""`modegpt compress --task`: a classifier, compressed on its own labels."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, MistralConfig

from modegpt import classify
from modegpt.methods import fwsvd
from modegpt.report import count_parameters
from modegpt.sources.labelled import read_labelled

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def task(text_file, tmp_path_factory):
    words = text_file.read_text().split()[:120]
    file = tmp_path_factory.mktemp("task") / "task.jsonl"
    lines = [{"text": " ".join(words[i : i + 5]), "label": i % 3} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def trained(dense_folder, tmp_path_factory):
    """Three labels; what it learned does not matter here."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    tokenizer = classify.load_tokenizer(str(dense_folder))
    classify.load_classifier(str(dense_folder), tokenizer, 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["trained", "opt"])
def test_the_folder_is_a_smaller_classifier(
    request, family, modegpt, trained, task, tmp_path, tiny_opt, tiny_tokenizer
):
    folder, small = trained, tmp_path / "small"
    if family == "opt":
        folder = tmp_path / "opt"
        torch.manual_seed(0)
        config = tiny_opt().config
        config.num_labels, config.vocab_size = 3, len(tiny_tokenizer)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    arguments = ("--method", "fwsvd", "--task", task, "--ratio", 0.3, "--out", small, "--json", tmp_path / "facts.json")
    printed = modegpt("compress", folder, *arguments)
    assert printed.code == 0, printed.err
    dense, found = (classify.load_trained(str(path)) for path in (folder, small))
    assert "AutoModelForSequenceClassification" in json.loads((small / "config.json").read_text())["auto_map"]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["parameters_after"] == count_parameters(found) < count_parameters(dense)
    assert facts["block_ratio"] == pytest.approx(0.3, abs=0.05) and facts["examples"] == 40
    assert torch.equal(found.score.weight, dense.score.weight)
    card = (small / "README.md").read_text()
    assert "text-classification" in card and "AutoModelForSequenceClassification" in card and "40 texts" in card
    examples, tokenizer = read_labelled(str(task)), classify.load_tokenizer(str(folder))
    in_python, _ = fwsvd.compress(dense, fwsvd.measure_task(dense, examples, tokenizer), 0.3)
    (inputs,) = classify.batches(examples, tokenizer, 40, dense.device)
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(**inputs).logits, in_python.eval()(**inputs).logits)


@pytest.mark.parametrize(
    "lines, message",
    [
        ([{"text": "one"}, {"text": "two"}], "every line needs a text and a label"),
        ([{"text": "one", "label": 1}, {"text": "two", "label": 1}], "no two kinds of labels"),
        ([{"text": "one", "label": 0}, {"text": "two", "label": 1}], "tells 3 labels apart, and there are only 2"),
        ([{"text": str(i), "label": i % 2} for i in range(9)], "head is for the labels 0 to 2, the task has 0, 1"),
        (
            [{"text": str(i), "label": i % 4} for i in range(9)],
            "head is for the labels 0 to 2, the task has 0, 1, 2, 3",
        ),
    ],
)
def test_a_task_that_does_not_fit_is_one_line(modegpt, trained, tmp_path, lines, message):
    file = tmp_path / "bad.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("--method", "fwsvd", "--task", file, "--ratio", 0.3, "--out", tmp_path / "small")
    printed = modegpt("compress", trained, *arguments)
    assert printed.code == 2 and message in " ".join(printed.err.split())
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (("--method", "svd"), "--task is an option of fwsvd, not of svd"),
        (("--method", "fwsvd", "--samples", 8), "--samples has no meaning with --task"),
    ],
)
def test_options_that_do_not_go_with_a_task(modegpt, trained, task, tmp_path, changes, message):
    printed = modegpt("compress", trained, "--task", task, "--ratio", 0.3, "--out", tmp_path / "small", *changes)
    assert printed.code == 2 and message in " ".join(printed.err.split())


def test_a_classifier_of_another_kind_is_named(modegpt, task, tiny_tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tiny_tokenizer), num_key_value_heads=2, num_labels=3, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "mistral")
    tiny_tokenizer.save_pretrained(tmp_path / "mistral")
    arguments = ("--method", "fwsvd", "--task", task, "--ratio", 0.3, "--out", tmp_path / "small")
    printed = modegpt("compress", tmp_path / "mistral", *arguments)
    wanted = "a LlamaForSequenceClassification or OPTForSequenceClassification, got a MistralForSequenceClassification"
    assert printed.code == 2 and wanted in " ".join(printed.err.split())


def test_a_language_model_has_no_head(modegpt, dense_folder, task, tmp_path):
    arguments = ("--method", "fwsvd", "--task", task, "--ratio", 0.3, "--out", tmp_path / "small")
    printed = modegpt("compress", dense_folder, *arguments)
    assert printed.code == 2 and "no classification head (score.weight is missing)" in " ".join(printed.err.split())
