"""Dialects on a GPU: one copy of the weights, and no kernel more than a Llama's per token."""

import gc
import math

import pytest
import torch
from contract import SIZES, far, logits, tiny
from test_dialects import GPT2_SIZES, MULTIPLIERS
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from modegpt import load_model
from modegpt.families import rewritten

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

WIDE = SIZES | {"hidden_size": 512, "intermediate_size": 1024, "initializer_range": 0.05}
SHARED = {  # dialects that change no weight
    "mistral": MistralConfig(**WIDE, sliding_window=None),
    "mistral with a window": MistralConfig(**WIDE, sliding_window=8),
    "qwen2": Qwen2Config(**WIDE),
    "phi3": Phi3Config(**WIDE),
}
CHANGED = {
    "granite": GraniteConfig(**WIDE, **MULTIPLIERS),
    "gemma": GemmaConfig(**WIDE, head_dim=128),
    "gpt2": GPT2Config(**GPT2_SIZES | {"n_embd": 510}),
}


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def size(tensors) -> int:
    """What they take on the GPU, whose allocator hands out pieces of 512 bytes."""
    found = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(512 * math.ceil(nbytes / 512) for nbytes in found.values())


@pytest.fixture
def tokens():
    return torch.randint(2, 128, (2, 40), generator=torch.Generator().manual_seed(1)).cuda()


@pytest.mark.parametrize("config", SHARED.values(), ids=SHARED)
def test_rewriting_copies_no_weight_and_changes_no_logit(config, tokens):
    model = tiny(config).cuda()
    expected, before = logits(model, tokens), allocated()
    new = rewritten(model)
    zeros = [weight for name, weight in new.named_parameters() if name.endswith("bias") and not weight.any()]
    assert allocated() - before <= size(zeros)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert all(weight.untyped_storage().data_ptr() in own for weight in new.parameters() if weight.ndim > 1)
    assert far(logits(new, tokens), expected) < 1e-4


@pytest.mark.parametrize("config", (SHARED | CHANGED).values(), ids=SHARED | CHANGED)
def test_a_folder_is_rewritten_before_it_comes_to_the_gpu(config, tokens, tmp_path):
    source = tiny(config)
    source.save_pretrained(tmp_path)
    expected = logits(source.cuda(), tokens)
    del source
    before = allocated()
    torch.cuda.reset_peak_memory_stats()
    model, _ = load_model(str(tmp_path), dtype="float32", device="cuda")
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.01 * size([*model.parameters(), *model.buffers()])
    assert far(logits(model, tokens), expected) < 1e-4


@torch.no_grad()
def kernels(model, tokens) -> int:
    """That one forward pass launches."""
    model(tokens)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        model(tokens)
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if "LaunchKernel" in event.key)


@pytest.mark.parametrize("config", (SHARED | CHANGED).values(), ids=SHARED | CHANGED)
def test_a_token_costs_what_it_costs_the_model_that_it_became(config, tokens):
    new = rewritten(tiny(config).cuda())
    plain = AutoModelForCausalLM.from_config(new.config).eval().cuda()
    one = tokens[:, :1]
    assert kernels(new, one) == kernels(plain, one) > 10
