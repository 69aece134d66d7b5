"""A compressed model on disk."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from modegpt.modeling import ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM, ModeGPTOPTConfig, ModeGPTOPTForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = {"llama": (ModeGPTLlamaConfig, ModeGPTLlamaForCausalLM), "opt": (ModeGPTOPTConfig, ModeGPTOPTForCausalLM)}


@torch.no_grad()
def test_sharded_and_half_precision_checkpoints_load(small, tokens, tmp_path):
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for name, buffer in loaded.named_buffers() if "rotary_index" in name} <= {torch.int64}
    assert torch.isfinite(loaded(tokens).logits).all()


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", ["query_key_ranks", "value_ranks", "mlp_ranks"])
@pytest.mark.parametrize("wrong", [None, [4], [4, 4, 4], 4, [4, 0], [4, -2], [4, 4.0], [4, "4"]], ids=str)
def test_config_without_a_size_for_each_layer_is_refused_by_name(family, name, wrong):
    config, model = CLASSES[family]
    ranks = {"query_key_ranks": [4, 4], "value_ranks": [4, 4], "mlp_ranks": [8, 8]}
    tiny = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 8}
    model(config(**tiny, **ranks))
    with pytest.raises(ValueError, match=f"config.{name} must list one positive integer for each of 2 layers"):
        model(config(**tiny, **ranks | {name: wrong}))
