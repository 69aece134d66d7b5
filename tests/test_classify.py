import random

import pytest
import torch

from modegpt import classify

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


@pytest.fixture
def classifier(dense_folder):
    tokenizer = classify.load_tokenizer(str(dense_folder))
    return classify.load_classifier(str(dense_folder), tokenizer, 2), tokenizer


def test_fine_tuning_learns_the_task_and_is_repeatable(classifier, examples):
    model, tokenizer = classifier
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = []
    for _ in range(2):
        model.load_state_dict(state)
        before = classify.accuracy(model, examples, tokenizer)
        classify.fine_tune(model, examples, tokenizer, epochs=8, learning_rate=2e-3, seed=0)
        weights.append(model.score.weight.detach().clone())
        assert classify.accuracy(model, examples, tokenizer) > max(0.85, before + 0.2)
    assert torch.equal(*weights)


def test_padding_does_not_change_an_answer(classifier, examples):
    model, tokenizer = classifier
    short, long = examples[0], (" ".join(text for text, _ in examples[:4]), 1)
    (alone,) = classify.batches([short], tokenizer, 1, model.device)
    (padded,) = classify.batches([short, long], tokenizer, 2, model.device)
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], model(**padded).logits[0], rtol=1e-4, atol=1e-4)


def test_the_seed_draws_the_head(dense_folder, classifier):
    model, tokenizer = classifier
    same, other = (classify.load_classifier(str(dense_folder), tokenizer, 2, seed) for seed in (0, 1))
    assert torch.equal(model.score.weight, same.score.weight)
    assert not torch.equal(model.score.weight, other.score.weight)
