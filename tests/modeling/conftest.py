import pytest

from modegpt.allocate import Ranks
from modegpt.pipeline import compress

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "grouped": {"num_key_value_heads": 2},
    "multi-head": {"num_key_value_heads": 4},
    "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3-rope": {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    "wide-heads": {"num_key_value_heads": 1, "head_dim": 24},
}


@pytest.fixture(params=VARIANTS, ids=str)
def dense(request, tiny_llama):
    return tiny_llama(**VARIANTS[request.param])


@pytest.fixture
def small(dense, tokens, monkeypatch):
    """Compressed with query-key and value ranks that differ from each other and between layers."""
    ranks = [Ranks(query_key=10, value=7, mlp=33), Ranks(12, 5, 70), Ranks(6, 12, 20)]
    monkeypatch.setattr("modegpt.pipeline.ranks_for", lambda *_: ranks)
    return compress(dense, tokens, ratio=0.35)[0]
