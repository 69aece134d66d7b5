"""Eval mode for the call, and tokens and positions that the model has, wherever tokens go in."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from modegpt import calibrate, compress, perplexity
from modegpt.errors import ModegptError, ModegptWarning
from modegpt.inference import check_length, eval_mode
from modegpt.methods import METHODS

CALIBRATED = [name for name, method in METHODS.items() if method.calibrated]


@pytest.fixture
def dropping(tiny_opt):
    """An OPT in train mode, with more dropout than anyone would take, but for one module."""
    model = tiny_opt(dropout=0.5, attention_dropout=0.5, layerdrop=0.5).train()
    model.model.decoder.layers[1].eval()
    return model


def modes(model: torch.nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_is_in_the_mode_that_it_was(dropping):
    before = modes(dropping)
    with pytest.raises(KeyError), eval_mode(dropping):
        assert not any(modes(dropping))
        raise KeyError
    assert modes(dropping) == before


def test_perplexity_in_train_mode_is_that_of_eval_mode(dropping, tokens):
    before = modes(dropping)
    found = perplexity(dropping, tokens)
    assert modes(dropping) == before
    assert found == perplexity(dropping.eval(), tokens)


def test_compression_in_train_mode_is_that_of_eval_mode(dropping, tokens):
    wanted, _ = compress(copy.deepcopy(dropping).eval(), tokens, ratio=0.3)
    small, _ = compress(dropping, tokens, ratio=0.3)
    assert dropping.training and not small.training
    assert torch.equal(small(tokens).logits, wanted(tokens).logits)


@pytest.mark.parametrize("name", CALIBRATED)
def test_every_method_measures_in_eval_mode(dropping, tokens, name):
    method, still = METHODS[name], copy.deepcopy(dropping).eval()
    tokens = torch.cat([tokens, tokens.flip(1)])  # measuring takes 256
    wanted, _ = method.compress(still, method.measure(still, tokens), 0.4)
    before = modes(dropping)
    measured = method.measure(dropping, tokens)
    assert modes(dropping) == before
    small, _ = method.compress(dropping, measured, 0.4)
    assert torch.equal(small.eval()(tokens).logits, wanted.eval()(tokens).logits)


BAD = {
    "beyond the vocabulary": (lambda t: t.index_fill(1, torch.tensor([3]), 128), "largest id .* is 128, .* has 128"),
    "far beyond": (lambda t: t + 2**40, "and the model has 128 tokens"),
    "the label of padding": (lambda t: t.index_fill(1, torch.tensor([3]), -100), "hold the id -100"),
    "floats": (lambda t: t.float(), "whole numbers.*float32"),
    "booleans": (lambda t: t > 5, "whole numbers.*bool"),
    "bytes": (lambda t: t.to(torch.uint8), "whole numbers.*uint8"),
    "one row": (lambda t: t[0], r"\(samples, length\) tensor, got \(40,\)"),
    "no row": (lambda t: t[:0], r"non-empty .*, got \(0, 40\)"),
    "no token": (lambda t: t[:, :0], r"non-empty .*, got \(6, 0\)"),
    "lists": (lambda t: t.tolist(), "got a list"),
    "an array": (lambda t: t.numpy(), "got a ndarray"),
    "nothing": (lambda _: None, "got a NoneType"),
}


@pytest.mark.parametrize("name", BAD)
def test_tokens_that_the_model_does_not_have(tiny_llama, tokens, name):
    model, (change, words) = tiny_llama(), BAD[name]
    bad = change(tokens)
    attempts = [lambda: compress(model, bad, ratio=0.3), lambda: perplexity(model, bad)]
    attempts += [lambda: calibrate.collect(model, bad), lambda: compress(model, {"input_ids": bad}, ratio=0.3)]
    attempts += [lambda name=name: METHODS[name].measure(model, bad) for name in CALIBRATED]
    for attempt in attempts:
        with pytest.raises(ModegptError, match=words):
            attempt()
    with pytest.raises(ModegptError):
        compress(model, bad, ratio=0.3, allocation="measured")


def test_int32_tokens_are_as_good(tiny_llama, tokens):
    assert perplexity(tiny_llama(), tokens.int()) == perplexity(tiny_llama(), tokens)


def test_more_tokens_than_learned_positions(tiny_opt, tokens):
    model = tiny_opt(max_position_embeddings=32)
    for attempt in (lambda: perplexity(model, tokens), lambda: compress(model, tokens, ratio=0.3)):
        with pytest.raises(ModegptError, match="40 tokens, and this model has learnt 32 positions"):
            attempt()
    perplexity(model, tokens[:, :32])


def test_learned_positions_of_other_families_count_too(tokens):
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=128, n_positions=32))
    with pytest.raises(ModegptError, match=r"learnt 32 positions \(max_position_embeddings\)"):
        perplexity(model, tokens)


def test_a_rotary_model_beyond_its_context_warns_and_goes_on(tiny_llama, tokens):
    model = tiny_llama(max_position_embeddings=32)
    with pytest.warns(ModegptWarning, match="40 tokens, and this model was made for 32 positions"):
        perplexity(model, tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_length(model, 32)
        perplexity(model, tokens[:, :32])


def test_eval_mode_keeps_no_layer_that_is_replaced(tiny_llama):
    """A 7B model shrinks as its layers are done: whoever holds the old ones doubles the memory."""
    model = tiny_llama().train()
    with eval_mode(model):
        old = weakref.ref(model.model.layers[0])
        model.model.layers[0] = nn.Identity()
        gc.collect()
        assert old() is None
    assert model.model.layers[1].training
