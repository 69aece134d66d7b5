import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def _tiny_llama(**changes) -> LlamaForCausalLM:
    """Random weights, large enough that a wrong head, scale or rotation shows in the logits."""
    options = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


@pytest.fixture
def tiny_llama():
    """Builds a tiny dense Llama, any config entry changed by keyword."""
    return _tiny_llama


@pytest.fixture
def tokens():
    """Six samples of forty tokens of the tiny vocabulary, none of them padding."""
    return torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(1))
