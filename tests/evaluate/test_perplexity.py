"""The protocol: float32 loss, windows on their own, nothing dropped, an honest standard error."""

import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed:
    """A model whose logits are given: `logits` (windows, seq_len, vocabulary), looked up by a window's first token."""

    device = torch.device("cpu")

    def __init__(self, logits, bos_token_id=None):
        self.logits, self.config = logits, SimpleNamespace(bos_token_id=bos_token_id)

    def __call__(self, batch, use_cache):
        return SimpleNamespace(logits=self.logits[batch[:, 0]])


def random_case(windows=5, length=12, vocabulary=50, scale=3.0):
    """Logits, and windows whose first tokens number them."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (windows, length), generator=draw)
    ids[:, 0] = torch.arange(windows)
    return scale * torch.randn(windows, length, vocabulary, generator=draw), ids


def slow_losses(logits, ids):
    """Mean loss of each window, token by token in float64."""
    losses = []
    for rows, window in zip(logits.double(), ids, strict=True):
        terms = []
        for position in range(len(window) - 1):
            total = sum(math.exp(x) for x in rows[position].tolist())
            terms.append(math.log(total) - rows[position, window[position + 1]].item())
        losses.append(sum(terms) / len(terms))
    return losses


@pytest.mark.parametrize("batch_size", [1, 2, 6, 100])
def test_equals_the_slow_oracle_at_every_batch_size(tiny_llama, tokens, batch_size):
    model = tiny_llama()
    with torch.no_grad():
        expected = slow_losses(torch.stack([model(window[None]).logits[0] for window in tokens]), tokens)
    result = perplexity(model, tokens, batch_size=batch_size)
    assert result.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    assert (result.windows, result.seq_len, result.tokens) == (6, 40, 6 * 39)


def test_loss_of_bfloat16_logits_is_taken_in_float32():
    """Trap 37: in bfloat16 a loss of 14.754 becomes 14.8125."""
    logits, ids = random_case(scale=8.0)
    logits = logits.bfloat16()
    exact = sum(slow_losses(logits, ids)) / len(ids)
    rounded = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(rounded - exact) > 1e-3  # the case can tell them apart
    assert math.log(perplexity(Fixed(logits), ids).perplexity) == pytest.approx(exact, abs=1e-6)


def test_bfloat16_model_agrees_with_its_own_logits_in_float64(tiny_llama, tokens):
    model = tiny_llama().bfloat16()
    with torch.no_grad():
        expected = slow_losses(model(tokens).logits, tokens)
    assert math.log(perplexity(model, tokens, batch_size=6).perplexity) == pytest.approx(
        sum(expected) / len(expected), abs=1e-6
    )


def test_windows_are_independent(tiny_llama, tokens):
    model = tiny_llama()
    alone = [math.log(perplexity(model, window[None]).perplexity) for window in tokens]
    together = perplexity(model, tokens, batch_size=2).perplexity
    assert math.log(together) == pytest.approx(sum(alone) / len(alone), abs=1e-6)
    assert perplexity(model, tokens.flip(0), batch_size=2).perplexity == pytest.approx(together, rel=1e-6)


def test_first_token_of_a_window_is_never_predicted():
    logits, ids = random_case()
    changed = logits.clone()
    changed[:, -1] = 100 * torch.randn(changed[:, -1].shape)  # would predict the token after the window
    assert perplexity(Fixed(changed), ids) == perplexity(Fixed(logits), ids)


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_upcasting_in_pieces_changes_nothing(monkeypatch, rows):
    logits, ids = random_case()
    monkeypatch.setattr(sys.modules["modegpt.evaluate.perplexity"], "LOGIT_ROWS", rows)  # not the function
    expected = sum(slow_losses(logits, ids)) / len(ids)
    assert math.log(perplexity(Fixed(logits), ids, batch_size=5).perplexity) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_non_finite_loss_raises_and_names_the_window(bad, batch_size):
    logits, ids = random_case()
    logits[3, 4, 0] = bad
    with pytest.raises(ModegptError, match="window 3"):
        perplexity(Fixed(logits), ids, batch_size=batch_size)


def test_standard_error_is_that_of_the_mean_loss_times_the_perplexity():
    logits, ids = random_case()
    losses = slow_losses(logits, ids)
    mean = sum(losses) / 5
    deviation = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 4)
    result = perplexity(Fixed(logits), ids)
    assert result.standard_error == pytest.approx(math.exp(mean) * deviation / math.sqrt(5), rel=1e-5)


def test_one_window_has_no_standard_error_and_no_warning():
    logits, ids = random_case(windows=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = perplexity(Fixed(logits), ids)
    assert math.isnan(result.standard_error)
    assert result.perplexity == pytest.approx(math.exp(slow_losses(logits, ids)[0]), rel=1e-5)


def test_perplexity_beyond_floats_is_infinite_and_not_an_error():
    logits, ids = random_case()
    assert perplexity(Fixed(1e4 * logits), ids).perplexity == math.inf


@pytest.mark.parametrize(("bos", "stated"), [(0, True), (1, False), (None, False)])
def test_bos_is_stated_if_the_text_starts_with_the_models_bos(bos, stated):
    logits, ids = random_case()  # the first token of the first window is 0
    assert perplexity(Fixed(logits, bos_token_id=bos), ids).bos is stated
