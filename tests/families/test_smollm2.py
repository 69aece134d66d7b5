import pytest
import torch
from transformers import LlamaForCausalLM

from modegpt import compress, load_model


@pytest.mark.slow
def test_smollm2_as_a_multi_head_model_is_the_same_and_ratio_zero_keeps_it():
    """Each of three key/value heads repeated three times: 147.8 M parameters, nothing else changes."""
    grouped, tokenizer = load_model("smollm2-135m", dtype="float32")
    tokens = tokenizer(
        "The main reason why the Roman Empire fell was that it had grown.", return_tensors="pt"
    ).input_ids
    config = type(grouped.config)(**{**grouped.config.to_dict(), "num_key_value_heads": 9})
    expanded = LlamaForCausalLM(config).eval()
    state = grouped.state_dict()
    for name in state:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = state[name].view(3, 64, 576).repeat_interleave(3, 0).reshape(576, 576)
    expanded.load_state_dict(state)
    assert sum(p.numel() for p in expanded.parameters()) == pytest.approx(147.8e6, rel=1e-3)
    with torch.no_grad():
        expected = grouped(tokens).logits
        torch.testing.assert_close(expanded(tokens).logits, expected, rtol=1e-4, atol=1e-3)
        small, report = compress(expanded, tokens, ratio=0.0)
        torch.testing.assert_close(small(tokens).logits, expected, rtol=1e-4, atol=1e-3)
    assert report.block_ratio == 0
