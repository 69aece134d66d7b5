import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modegpt.study.bench.bounds import block_parameters, decode_bytes, prefill_flops
from modegpt.study.bench.shapes import config_of, random_model
from modegpt.study.bench.throughput import compressed_model

BATCH, TOKENS = 3, 10


@pytest.fixture(params=[0, 0.3, 0.5])
def model(request):
    dense = random_model("tiny-llama", device="cpu", dtype=torch.float32)
    return compressed_model(dense, request.param, multiple_of=2) if request.param else dense


def test_counts_of_a_dense_model_by_hand():
    """tiny-llama: width 64, 4 query heads and 2 key/value heads of 16, 172 channels, 2 layers, 256 words."""
    config = config_of("tiny-llama")
    weights = 2 * (64 * 64 + 64 * 32 + 64 * 32 + 64 * 64 + 3 * 64 * 172)
    assert block_parameters(config) == weights
    seen = 2 * 4 * (1 + 2 + 3 + 4 + 5) * (16 + 16)  # layers, heads, keys seen by five queries, dims
    assert prefill_flops(config, 2, 5) == 2 * (10 * weights + 2 * seen + 2 * 64 * 256)
    norms, words = 5 * 64, 64 * (256 + 3)
    assert decode_bytes(config, 3, 7, item=2) == 2 * (weights + norms + words + 3 * 7 * 2 * 2 * (16 + 16))


def test_operations_agree_with_the_counter_of_torch(model):
    model.set_attn_implementation("eager")  # the fused kernel of the CPU is not counted
    ids = torch.randint(256, (BATCH, TOKENS))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False, logits_to_keep=1)
    config = model.config
    dims = getattr(config, "query_key_ranks", None) or [16, 16], getattr(config, "value_ranks", None) or [16, 16]
    unseen = BATCH * TOKENS * (TOKENS - 1) // 2 * 4 * sum(map(sum, dims))  # above the diagonal, which eager computes
    assert counter.get_total_flops() == prefill_flops(config, BATCH, TOKENS) + 2 * unseen


def test_bytes_are_those_of_the_weights_and_the_cache(model):
    ids = torch.randint(256, (BATCH, TOKENS))
    cache = model(ids, use_cache=True).past_key_values
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = sum(p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name)
    assert decode_bytes(model.config, BATCH, TOKENS, item=4) == weights + cached + BATCH * 64 * 4


def test_half_the_parameters_allow_twice_the_speed():
    dense = config_of("tiny-llama")
    half = compressed_model(random_model("tiny-llama", device="cpu", dtype=torch.float32), 0.5, 1).config
    assert block_parameters(dense) / block_parameters(half) == pytest.approx(2, rel=0.01)
    assert prefill_flops(dense, 4, 500) / prefill_flops(half, 4, 500) == pytest.approx(2, rel=0.01)
    weights = decode_bytes(dense, 1, 0) / decode_bytes(half, 1, 0)  # the output embedding is not compressed
    assert 1.5 < weights < decode_bytes(dense, 1, 5000) / decode_bytes(half, 1, 5000) < 2
