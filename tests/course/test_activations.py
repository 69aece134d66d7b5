import pytest
import torch
from transformers.models.llama.modeling_llama import rotate_half

from modegpt import ModegptError
from modegpt.calibrate import collect
from modegpt.course.activations import layer_activations
from modegpt.sources import load_model, load_text, token_windows


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def opt(own_cache):
    return layer_activations(2, model="opt-mini", samples=2)


def _gram(rows):
    rows = rows.double()
    return rows.mT @ rows / rows.shape[-2]


def test_activations_are_those_that_calibration_sees(opt):
    model, tokenizer = load_model("opt-mini", dtype="float32")
    tokens = token_windows(load_text("wiki-passages", "calibration"), tokenizer, 2, 512, seed=0)
    seen = collect(model, tokens)[2]
    for name, rows in (("mlp", opt.a), ("query", opt.query), ("key", opt.key), ("value", opt.value)):
        torch.testing.assert_close(_gram(rows), getattr(seen, name), rtol=1e-3, atol=1e-4)
    cosine = torch.cosine_similarity(opt.x_in, opt.x_out).double()
    assert (1 - cosine).mean().item() == pytest.approx(seen.block_influence, abs=1e-4)


def test_weights_make_the_activations(opt):
    torch.testing.assert_close(opt.X_attention @ opt.W_V, opt.value, rtol=1e-4, atol=1e-4)
    layer = load_model("opt-mini", dtype="float32")[0].model.decoder.layers[2]
    torch.testing.assert_close(torch.relu(opt.X_mlp @ opt.W_U + layer.fc1.bias), opt.a, rtol=1e-4, atol=1e-4)
    assert opt.W_G is None and opt.cos is None and opt.sin is None
    torch.testing.assert_close(opt.W_D, layer.fc2.weight.T)


def test_second_call_reads_what_the_first_kept(opt, own_cache, monkeypatch):
    (kept,) = (own_cache / "activations").iterdir()
    monkeypatch.setattr("modegpt.course.activations.load_text", lambda *_: pytest.fail("the text was read again"))
    torch.testing.assert_close(layer_activations(2, model="opt-mini", samples=2).x_out, opt.x_out)
    monkeypatch.undo()
    monkeypatch.setenv("MODEGPT_CACHE_DIR", str(own_cache))
    kept.write_bytes(kept.read_bytes()[:1000])  # cut short, as by a full disk
    torch.testing.assert_close(layer_activations(2, model="opt-mini", samples=2).x_out, opt.x_out)


@pytest.mark.slow
def test_llama_is_gated_grouped_and_rotated():
    seen = layer_activations(1, "evaluation", samples=1)
    gated = torch.nn.functional.silu(seen.X_mlp @ seen.W_G) * (seen.X_mlp @ seen.W_U)
    torch.testing.assert_close(gated, seen.a, rtol=1e-4, atol=1e-4)
    plain = seen.X_attention @ seen.W_Q  # (3, 3, tokens, 64)
    assert plain.shape == (3, 3, 512, 64) and seen.key.shape == (3, 512, 64)
    torch.testing.assert_close(plain * seen.cos + rotate_half(plain) * seen.sin, seen.query, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 99}, "layers 0 to"),
        ({"index": -1}, "layers 0 to"),
        ({"index": 0, "part": "test"}, "'test'"),
        ({"index": 0, "samples": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ModegptError, match=message):
        layer_activations(**{"model": "opt-mini", **arguments})
