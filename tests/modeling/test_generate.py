"""Greedy text does not depend on how the past is kept or on who else is in the batch."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}


@torch.no_grad()
def test_the_cache_holds_the_ranks_of_each_layer(small, tokens):
    layers = small(tokens, use_cache=True).past_key_values.layers
    assert [layer.keys.shape[-1] for layer in layers] == small.config.query_key_ranks
    assert [layer.values.shape[-1] for layer in layers] == small.config.value_ranks


@torch.no_grad()
def test_left_padded_batch_generates_what_each_prompt_does_alone(small, tokens):
    prompts = [tokens[0, :5], tokens[1, :11]]
    ids = torch.stack([torch.nn.functional.pad(p, (11 - len(p), 0)) for p in prompts])
    together = small.generate(ids, attention_mask=(ids != 0).long(), **GREEDY)
    for prompt, row in zip(prompts, together, strict=True):
        alone = small.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), **GREEDY)
        assert torch.equal(alone[0, len(prompt) :], row[11:])
