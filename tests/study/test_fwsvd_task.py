import dataclasses
import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modegpt.cli.study import fwsvd_task
from modegpt.errors import ModegptError
from modegpt.study import fwsvd_task as kit
from modegpt.study.results import Results, Row, load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def examples(text_file):
    """The label says which of two words stands among others."""
    words, draw = text_file.read_text().lower().replace(".", "").split()[:200], random.Random(0)
    texts = []
    for index in range(160):
        label = index % 2
        marked = [*draw.choices(words, k=4), "nnnn" if label else "aaaa"]
        draw.shuffle(marked)
        texts.append((" ".join(marked), label))
    return texts


@pytest.fixture(scope="module")
def task_file(examples, tmp_path_factory):
    file = tmp_path_factory.mktemp("task") / "words.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in examples))
    return file


@pytest.fixture
def classifier(dense_folder):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(dense_folder, num_labels=2)
    model.config.pad_token_id = 0
    return model, AutoTokenizer.from_pretrained(dense_folder, padding_side="right")


def test_fine_tuning_learns_the_task_and_is_repeatable(classifier, examples):
    model, tokenizer = classifier
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = []
    for _ in range(2):
        model.load_state_dict(state)
        before = kit.accuracy(model, examples, tokenizer)
        kit.fine_tune(model, examples, tokenizer, epochs=8, learning_rate=2e-3, seed=0)
        weights.append(model.score.weight.detach().clone())
        assert kit.accuracy(model, examples, tokenizer) > max(0.85, before + 0.2)
    assert torch.equal(*weights)


def test_padding_does_not_change_an_answer(classifier, examples):
    model, tokenizer = classifier
    model.eval()
    short, long = examples[0], (" ".join(text for text, _ in examples[:4]), 1)
    (alone,) = kit.batches([short], tokenizer, 1, model.device)
    (padded,) = kit.batches([short, long], tokenizer, 2, model.device)
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], model(**padded).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", kit.METHODS)
def test_every_linear_of_the_blocks_is_factorised_and_full_rank_changes_nothing(classifier, examples, method):
    model, tokenizer = classifier
    factors = kit.factors_of(model, method, examples[:6], tokenizer)
    assert len(factors) == 3 * 7
    for name, (left, right) in factors.items():
        weight = model.get_submodule(name).weight
        torch.testing.assert_close((left @ right).float(), weight.detach(), rtol=1e-4, atol=1e-5)


def test_fwsvd_looks_at_the_task(classifier, examples):
    """Its factors depend on the labels, those of SVD do not."""
    model, tokenizer = classifier
    flipped = [(text, 1 - label) for text, label in examples[:6]]

    def first(method, data):
        return next(iter(kit.factors_of(model, method, data, tokenizer).values()))[1]

    assert torch.equal(first("svd", examples[:6]), first("svd", flipped))
    assert not torch.allclose(first("fwsvd", examples[:6]), first("fwsvd", flipped))


def test_summary_is_the_mean_and_spread_over_seeds():
    def row(value, seed, again):
        details = {"share": 0.3, "again": again, "parameters": 5}
        return Row(what="accuracy", unit="share", value=value, model="m", method="svd", seed=seed, details=details)

    rows = [row(before, seed, False) for seed, before in enumerate((0.5, 0.6, 0.7))]
    rows += [dataclasses.replace(row(0.9, seed, True), variant="again") for seed in range(3)]
    (line,) = kit.summary(Results.now("fwsvd", "a test", {}, rows, "cpu", "command"))
    assert line["before"]["mean"] == pytest.approx(0.6) and line["before"]["spread"] == pytest.approx(0.1)
    assert line["after"] == {"mean": pytest.approx(0.9), "spread": pytest.approx(0)}


def run(folder, task_file, out, **changes):
    options = {
        "shares": "0.2,0.33",
        "again": "0.33",
        "seeds": 2,
        "epochs": 1,
        "learning_rate": 1e-3,
        "device": "cpu",
    } | changes
    fwsvd_task(model=str(folder), task=str(task_file), folder=out, **options)


def test_a_whole_run_and_one_that_was_interrupted_give_the_same(dense_folder, task_file, tmp_path, monkeypatch):
    run(dense_folder, task_file, tmp_path / "whole")
    calls, train = [], kit.fine_tune

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == 6:  # in the second seed
            raise KeyboardInterrupt
        train(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(kit, "fine_tune", broken)
        with pytest.raises(KeyboardInterrupt):
            run(dense_folder, task_file, tmp_path / "cut")
    run(dense_folder, task_file, tmp_path / "cut")
    name = "fwsvd-words-dense.json"
    whole, cut = (load(tmp_path / f / "results" / name) for f in ("whole", "cut"))
    assert whole.rows == cut.rows
    assert len(whole.rows) == 2 * (2 + 2 * 3)  # dense twice; each method at two shares, one of them twice
    about = whole.settings
    assert about["majority"] == pytest.approx(0.5, abs=0.1) and about["train"] + about["test"] == 160
    assert (tmp_path / "cut" / "fwsvd-words-dense.png").stat().st_size > 10_000
    assert [path.name for path in (tmp_path / "cut" / "results").iterdir()] == [name]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shares": "0.2,half"}, "--shares is a list such as"),
        ({"again": "0.4"}, "must be among"),
        ({"shares": "0.9", "again": "0.9"}, "saves nothing: break-even is at rank"),
        ({"task": "sst9"}, "unknown task"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_bad_options_are_one_clear_line(dense_folder, task_file, tmp_path, changes, message):
    task = changes.pop("task", task_file)
    with pytest.raises(ModegptError, match=message):
        run(dense_folder, task, tmp_path, **changes)
