"""Which entries of a config are understood: one that changes the model and is not, is refused by name."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from modegpt.errors import ModegptError

# Of models with the parts of a Llama: the names and meanings of LlamaConfig
LLAMA = frozenset(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias tie_word_embeddings
    attention_dropout initializer_range pretraining_tp""".split()
)
OPT = frozenset(
    """vocab_size hidden_size num_hidden_layers ffn_dim max_position_embeddings do_layer_norm_before
    _remove_final_layer_norm word_embed_proj_dim num_attention_heads activation_function dropout attention_dropout
    layerdrop init_std enable_bias layer_norm_elementwise_affine tie_word_embeddings""".split()
)
WINDOWS = frozenset(["use_sliding_window", "sliding_window", "max_window_layers", "layer_types"])
# Of any model: they say how it is used, not what it computes
USE = (
    frozenset("use_cache pad_token_id bos_token_id eos_token_id rewritten_from".split())
    | PreTrainedConfig().to_dict().keys()
)
# A class reads what it declares; what it does not is refused if it sounds as if another class would
SOUNDS = re.compile("scal|multipl|soft_?cap|window|clip|partial|qk_?norm")

# What tells another architecture, the most telling first
TELLING = ("vision_config|audio_config", "experts$", "lora_rank$", "linear_|state_size", SOUNDS, "parallel|alibi")


def told(entries: Mapping[str, Any]) -> str:
    """What a config has that no supported model knows, for the end of a refusal; nothing if nothing sounds like it."""
    found = (name for sound in TELLING for name, value in entries.items() if value and re.search(sound, name))
    name = next(found, None)
    if name is None:
        return ""
    plain = isinstance(entries[name], int | float | str)
    return f": it has {name} = {entries[name]}" if plain else f": it has a {name}"


def check_attributes(config: PreTrainedConfig, known: frozenset[str], only: Mapping[str, Any] | None = None) -> None:
    """Raise ModegptError naming the first entry of a config that would change the model in a way nobody took care of.

    Args:
        known: names of the entries that are taken care of.
        only: entries that must have this value.
    """
    declared, kind = type(config)().to_dict(), config.model_type
    for name, value in sorted(config.to_dict().items()):
        if only and name in only:
            understood = value == only[name]
        elif name in known or name in USE:
            understood = True
        elif name in declared:
            understood = value == declared[name]
        else:
            understood = not value or not SOUNDS.search(name) or name == "rope_scaling"
        if not understood:
            raise ModegptError(f"this '{kind}' has {name} = {value} in its config, which modegpt does not know")
    partial = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1)
    if partial != 1:
        raise ModegptError(f"this '{kind}' has partial_rotary_factor = {partial}, which modegpt does not know")
    if getattr(config, "is_causal", True) is False:
        raise ModegptError(f"this '{kind}' has is_causal = False: it sees the tokens that it would have to predict")
