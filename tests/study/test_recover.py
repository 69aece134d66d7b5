import copy

import pytest
import torch

from modegpt.pipeline import compress
from modegpt.study import recover as kit

pytestmark = pytest.mark.usefixtures("one_thread")


def loss(model, windows):
    with torch.no_grad():
        return model(input_ids=windows, labels=windows).loss.item()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_opt"])
def test_a_compressed_model_learns_and_keeps_its_shapes(name, tokens, request, monkeypatch):
    monkeypatch.setattr(kit, "LEARNING_RATE", 1e-2)
    small, _ = compress(request.getfixturevalue(name)(), tokens, ratio=0.3, multiple_of=2)
    before = copy.deepcopy(small)
    windows = (torch.arange(32) % 7 + 4).repeat(16, 1)  # a text that can be learnt
    recovered = kit.recover(small, windows)
    assert type(recovered) is type(before)
    assert {n: p.shape for n, p in recovered.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    assert loss(recovered, windows) < 0.8 * loss(before, windows)
    assert torch.equal(recovered.get_input_embeddings().weight, before.get_input_embeddings().weight)
