"""An oracle: a stock model of the dense sizes, zero where something was dropped, computes the same."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
STOCK = {"modegpt_llama": (LlamaConfig, LlamaForCausalLM), "modegpt_opt": (OPTConfig, OPTForCausalLM)}


def in_place(rows: Tensor, dims: Tensor, head_dim: int) -> Tensor:
    """The rows of each head at their dims (heads, rank) of the original head, the others zero."""
    whole = rows.new_zeros(len(dims) * head_dim, *rows.shape[1:])
    first = torch.arange(len(dims))[:, None] * head_dim
    whole[(first + dims).flatten()] = rows
    return whole


def stock_attention(small: nn.Module, heads: int, head_dim: int) -> dict[str, Tensor]:
    """The tensors of a compressed attention with heads of the original size."""
    rank, state = small.q_proj.out_features // heads, small.state_dict()
    key_heads = small.k_proj.out_features // rank
    value_dims = torch.arange(small.v_proj.out_features // key_heads)
    # without rotation any dims do, if queries and keys have the same
    key_dims = state.pop("rotary_index", torch.arange(rank).expand(key_heads, -1))
    dims = {
        "q": key_dims.repeat_interleave(heads // key_heads, dim=0),
        "k": key_dims,
        "v": value_dims.expand(key_heads, -1),
        "o": value_dims.expand(heads, -1),
    }
    for name, tensor in state.items():
        if name[0] in "qkv":
            state[name] = in_place(tensor, dims[name[0]], head_dim)
        elif name.endswith("weight"):
            state[name] = in_place(tensor.T, dims["o"], head_dim).T
    return state


def padded_to_stock(small):
    config_class, model_class = STOCK[small.config.model_type]
    entries = small.config.to_dict()
    for name in ("query_key_ranks", "value_ranks", "mlp_ranks", "model_type", "architectures", "auto_map"):
        entries.pop(name, None)
    model = model_class(config_class(**entries)).eval()
    heads = model.config.num_attention_heads
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads

    state = small.state_dict()
    for name, module in small.named_modules():
        if name.endswith(".self_attn"):
            padded = stock_attention(module, heads, head_dim)
            state |= {f"{name}.{part}": tensor for part, tensor in padded.items()}
    whole = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in whole.keys() & state.keys():
        whole[name][tuple(slice(size) for size in state[name].shape)] = state[name]  # the MLP's channels come first
    model.load_state_dict(whole)
    return model


@torch.no_grad()
def test_zero_padded_to_a_stock_model_it_gives_the_same_logits(small, tokens):
    torch.testing.assert_close(padded_to_stock(small)(tokens).logits, small(tokens).logits, rtol=1e-4, atol=1e-4)
