import pytest

from modegpt.allocate import Ranks
from modegpt.pipeline import compress

ROPE = {"rope_type": "default", "rope_theta": 500000.0}
STRETCHED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# what the real model of that name has, in small
LLAMAS = {
    "llama-2": {"num_key_value_heads": 4},
    "llama-3": {"num_key_value_heads": 2, "rope_parameters": ROPE},
    "llama-3.1": {"num_key_value_heads": 2, "rope_parameters": STRETCHED_ROPE},
    "llama-3.2": {"num_key_value_heads": 2, "rope_parameters": STRETCHED_ROPE, "tie_word_embeddings": True},
    "tinyllama": {"num_key_value_heads": 2},
    "wide-heads": {"num_key_value_heads": 1, "head_dim": 24},
    "biased": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
}
OPTS = {
    "opt": {},
    "opt-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},  # norms after the blocks
    "opt-gelu": {"activation_function": "gelu"},
}
# query-key and value ranks differ from each other and between layers; rotary ones are even
LLAMA_RANKS = [Ranks(query_key=10, value=7, mlp=33), Ranks(12, 5, 70), Ranks(6, 12, 20)]
OPT_RANKS = [Ranks(query_key=9, value=7, mlp=33), Ranks(13, 5, 70), Ranks(6, 12, 20)]


@pytest.fixture(params=[*LLAMAS, *OPTS])
def dense(request, tiny_llama, tiny_opt):
    name = request.param
    # without dropout a training step is no dice roll
    return tiny_opt(dropout=0.0, **OPTS[name]) if name in OPTS else tiny_llama(**LLAMAS[name])


@pytest.fixture
def small(dense, tokens, monkeypatch):
    """Compressed to ranks that tell layers and modules apart."""
    ranks = OPT_RANKS if dense.config.model_type == "opt" else LLAMA_RANKS
    monkeypatch.setattr("modegpt.pipeline.ranks_for", lambda *_: ranks)
    return compress(dense, tokens, ratio=0.35)[0]
