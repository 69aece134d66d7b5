"""SliceGPT: rotations change nothing, slices keep what is largest, and budgets count what was added."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import modegpt.modeling  # noqa: F401  registers the sliced architectures
from modegpt.errors import ModegptError
from modegpt.families import family_of
from modegpt.methods.slicegpt import compress, measure, slice_to
from modegpt.modeling import SliceGPTLlamaConfig, SliceGPTLlamaForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 48


def in_double(norm, states):
    """The stock RMS norm rounds to float32 even in a float64 model, which would hide an error of 1e-6."""
    return norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)


@pytest.fixture(params=["llama", "opt"])
def dense(request, tiny_llama, tiny_opt, monkeypatch):
    """In float64, with norms that scale (and, if they can, shift) every channel differently."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", in_double)
    model = {"llama": tiny_llama, "opt": tiny_opt}[request.param]().double()
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.5)
    return model


def decoder(model):
    return model.model.decoder if model.config.model_type.endswith("opt") else model.model


def norms(model):
    """The norms in the order in which the stream passes them, the head's last."""
    stack = decoder(model)
    if model.config.model_type == "opt":
        pairs = [(layer.self_attn_layer_norm, layer.final_layer_norm) for layer in stack.layers]
        return [norm for pair in pairs for norm in pair] + [stack.final_layer_norm]
    pairs = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in stack.layers]
    return [norm for pair in pairs for norm in pair] + [stack.norm]


def stream_writers(model):
    """Every weight that adds to the residual stream, with the stream's channels last."""
    stack = decoder(model)
    if model.config.model_type == "opt":
        for embedding in (stack.embed_tokens, stack.embed_positions):
            yield embedding.weight
        for layer in stack.layers:
            for linear in (layer.self_attn.out_proj, layer.fc2):
                yield from (linear.weight.T, linear.bias)
    else:
        yield stack.embed_tokens.weight
        for layer in stack.layers:
            yield from (layer.self_attn.o_proj.weight.T, layer.mlp.down_proj.weight.T)


@torch.no_grad()
def signals(model, tokens, signal):
    """What every norm gets, or makes of it before its scale and bias, by numpy: rows are tokens."""
    seen = []
    handles = [norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for norm in norms(model)]
    model(tokens)
    for handle in handles:
        handle.remove()
    for states in seen:
        x, eps = states.reshape(-1, WIDTH).numpy(), 1e-6
        if model.config.model_type == "opt":
            x, eps = x - x.mean(1, keepdims=True), 1e-5
        yield x if signal == "stream" else x / np.sqrt((x**2).mean(1, keepdims=True) + eps)


@pytest.mark.parametrize("signal", ["norm", "stream"])
@torch.no_grad()
def test_rotations_alone_change_nothing(dense, tokens, signal):
    measured = measure(dense, tokens, signal=signal)
    rotated = slice_to(dense, measured, WIDTH)
    assert (rotated(tokens).logits - dense(tokens).logits).abs().max() < 1e-8
    for basis in measured.bases:  # real rotations, another one in every block
        assert (basis - torch.eye(WIDTH)).abs().max() > 0.5
    assert (decoder(rotated).layers[0].mlp_shortcut.weight - torch.eye(WIDTH)).abs().max() > 0.1


@torch.no_grad()
def test_measuring_and_slicing_leave_the_dense_model_as_it_was(dense, tokens):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    compress(dense, measure(dense, tokens), 0.3)
    after = dense.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("signal", ["norm", "stream"])
@torch.no_grad()
def test_no_projection_of_the_signal_is_better_than_the_slice(dense, tokens, signal):
    measured = measure(dense, tokens, signal=signal)
    found = signals(dense, tokens, signal)
    for x, basis, variances in zip(found, measured.bases, measured.variances, strict=True):
        squares = np.linalg.svd(x, compute_uv=False) ** 2 / len(x)  # Eckart-Young: what the best slices lose
        assert np.allclose(variances.numpy(), squares, atol=1e-9)
        for width in (1, 20, 40):
            kept = basis[:, :width].numpy()
            lost = np.sum((x - x @ kept @ kept.T) ** 2) / len(x)
            assert lost == pytest.approx(squares[width:].sum(), rel=1e-8)


@torch.no_grad()
def test_padding_counts_nowhere(dense, tokens):
    real = torch.ones_like(tokens)
    real[0, :7] = real[3, :25] = 0
    measured = measure(dense, {"input_ids": tokens, "attention_mask": real}, batch_size=6)
    assert measured.tokens == int(real.sum()) < tokens.numel()
    garbage = torch.where(real.bool(), tokens, 5)
    again = measure(dense, {"input_ids": garbage, "attention_mask": real}, batch_size=2)
    for left, right in zip(measured.variances, again.variances, strict=True):
        assert torch.allclose(left, right, atol=1e-10)
    unmasked = measure(dense, tokens)
    assert not torch.allclose(measured.variances[0], unmasked.variances[0], atol=1e-3)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
@torch.no_grad()
def test_a_stream_that_lies_in_a_subspace_loses_nothing(dense, tokens, ratio):
    subspace = torch.linalg.qr(torch.randn(WIDTH, 18, dtype=torch.float64)).Q
    for weight in stream_writers(dense):
        weight.copy_(weight @ subspace @ subspace.T)
    expected = dense(tokens).logits
    sliced, _ = compress(dense, measure(dense, tokens), ratio)
    assert 18 <= sliced.config.sliced_size < WIDTH
    assert (sliced(tokens).logits - expected).abs().max() < 1e-6
    narrower = slice_to(dense, measure(dense, tokens), 16)
    assert (narrower(tokens).logits - expected).abs().max() > 1e-2


@torch.no_grad()
def test_a_layer_norm_leaves_one_direction_free(tiny_opt, tokens):
    """Centred vectors have one dimension less, so an OPT loses nothing with one channel less."""
    dense = tiny_opt().double()
    sliced = slice_to(dense, measure(dense, tokens), WIDTH - 1)
    assert (sliced(tokens).logits - dense(tokens).logits).abs().max() < 1e-8


def block_weights(model):
    """Weights of the linear maps inside the layers, counted from the modules."""
    linears = (module for module in decoder(model).layers.modules() if isinstance(module, torch.nn.Linear))
    return sum(linear.weight.numel() for linear in linears)


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.35, 0.6, 0.9])
def test_the_width_is_the_largest_that_fits_with_its_shortcuts(dense, tokens, ratio):
    measured = measure(dense, tokens)
    sliced, report = compress(dense, measured, ratio)
    budget = (1 - ratio) * block_weights(dense)
    assert report.block_parameters_before == block_weights(dense)
    assert report.block_parameters_after == block_weights(sliced) <= budget
    assert report.block_ratio >= ratio
    assert block_weights(slice_to(dense, measured, sliced.config.sliced_size + 1)) > budget
    assert report.parameters_after == sum(p.numel() for p in sliced.parameters())
    assert report.parameters_before == sum(p.numel() for p in dense.parameters())
    assert (report.tokens, report.requested_ratio) == (240, ratio)
    assert report.settings == {"signal": "stream", "sliced_size": sliced.config.sliced_size}
    assert set(report.seconds) == {"calibrate", "slice"}


@torch.no_grad()
def test_a_smaller_slice_is_farther_from_the_dense_model(dense, tokens):
    measured, expected = measure(dense, tokens), dense(tokens).logits
    far = [(slice_to(dense, measured, k)(tokens).logits - expected).square().mean() for k in (48, 44, 36, 12)]
    assert far == sorted(far)


@torch.no_grad()
def test_greedy_text_is_the_same_without_cache_and_with_any(dense, tokens):
    sliced, _ = compress(dense, measure(dense, tokens), 0.3)
    greedy = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    cached = sliced.generate(tokens[:2, :7], **greedy)
    assert torch.equal(cached, sliced.generate(tokens[:2, :7], **greedy, use_cache=False))
    assert torch.equal(cached, sliced.generate(tokens[:2, :7], **greedy, cache_implementation="static"))


@torch.no_grad()
def test_a_tied_head_is_untied_and_counted(tiny_llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaRMSNorm, "forward", in_double)
    dense = tiny_llama(tie_word_embeddings=True).double()
    torch.nn.init.normal_(dense.model.norm.weight, mean=1.0, std=0.5)
    measured = measure(dense, tokens)
    assert (slice_to(dense, measured, WIDTH)(tokens).logits - dense(tokens).logits).abs().max() < 1e-8
    sliced, report = compress(dense, measured, 0.3)
    assert not sliced.config.tie_word_embeddings
    assert sliced.lm_head.weight.data_ptr() != sliced.model.embed_tokens.weight.data_ptr()
    inside = report.block_parameters_after
    assert report.parameters_after == inside + 2 * 128 * sliced.config.sliced_size
    assert "two now" in report.warnings[0]
    assert not any("two now" in warning for warning in compress(dense, measured, 0.0)[1].warnings)
    sliced.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded(tokens).logits, sliced(tokens).logits)


def test_too_few_tokens_are_warned_of(tiny_llama, tokens):
    dense, enough = tiny_llama(), tokens.repeat(2, 1)  # 48 dims ask for 480
    assert compress(dense, measure(dense, enough), 0.3)[1].warnings == []
    (warning,) = compress(dense, measure(dense, enough[1:]), 0.3)[1].warnings
    assert "440 calibration tokens" in warning and "48 dims" in warning


@torch.no_grad()
def test_half_precision_stays_half_precision(tiny_llama, tokens):
    dense = tiny_llama().bfloat16()
    measured = measure(dense, tokens)
    assert measured.bases[0].dtype == torch.float64
    sliced, _ = compress(dense, measured, 0.2)
    assert {parameter.dtype for parameter in sliced.parameters()} == {torch.bfloat16}
    assert torch.isfinite(sliced(tokens).logits).all()


def test_gradients_reach_every_weight_of_a_slice(dense, tokens):
    sliced, _ = compress(dense, measure(dense, tokens), 0.3)
    sliced.train()(tokens, labels=tokens).loss.backward()
    assert [name for name, parameter in sliced.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("change", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 24}])
def test_an_opt_that_is_built_otherwise_is_refused(tiny_opt, tokens, change):
    with pytest.raises(ModegptError, match="norms before the blocks"):
        measure(tiny_opt(**change), tokens)


def test_an_unknown_signal_is_refused(tiny_llama, tokens):
    with pytest.raises(ModegptError, match="norm or stream"):
        measure(tiny_llama(), tokens, signal="head")


def test_a_ratio_that_leaves_no_width_is_refused(dense, tokens):
    measured = measure(dense, tokens)
    with pytest.raises(ModegptError, match="no width would be left"):
        compress(dense, measured, 0.999)
    with pytest.raises(ModegptError, match="lies in"):
        compress(dense, measured, 1.0)


def test_the_components_of_another_model_are_refused(tiny_llama, tokens):
    measured = measure(tiny_llama(num_hidden_layers=2), tokens)
    with pytest.raises(ModegptError, match="not those of this model"):
        compress(tiny_llama(), measured, 0.3)


def test_a_slice_is_not_sliced_again(dense, tokens):
    sliced, _ = compress(dense, measure(dense, tokens), 0.3)
    with pytest.raises(ModegptError):
        measure(sliced, tokens)


@pytest.mark.parametrize("size", [None, 0, 49, 20.0])
def test_a_config_without_a_sensible_width_is_refused(size):
    config = SliceGPTLlamaConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=1, vocab_size=10)
    object.__setattr__(config, "sliced_size", size)
    with pytest.raises(ValueError, match="sliced_size"):
        SliceGPTLlamaForCausalLM(config)


def test_a_tied_config_is_refused():
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 10}
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        SliceGPTLlamaForCausalLM(SliceGPTLlamaConfig(**sizes, sliced_size=20, tie_word_embeddings=True))


def test_every_layer_was_measured_at_both_norms_and_the_head(dense, tokens):
    measured = measure(dense, tokens)
    assert len(measured.bases) == 2 * len(family_of(dense).layers(dense)) + 1
    for basis in measured.bases:
        assert torch.allclose(basis.T @ basis, torch.eye(WIDTH, dtype=torch.float64), atol=1e-10)
