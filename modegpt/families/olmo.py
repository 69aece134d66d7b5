"""OLMo 2: a Llama that normalises what attention and MLP give, not what they get, and queries and keys of all heads."""

from torch import Tensor, nn
from transformers import Olmo2ForCausalLM, PreTrainedConfig

from modegpt.families.base import Decomposed, Places
from modegpt.families.llama import ATTENTION, PARTS, Llama, kept_rows
from modegpt.modeling import ModeGPTOlmo2Config, ModeGPTOlmo2ForCausalLM

NORMS = {"self_attn.q_proj": "self_attn.q_norm", "self_attn.k_proj": "self_attn.k_norm"}


class Olmo2(Llama):
    """OLMo 2: q = norm(W_q x) g over the dims of all heads, then rotary, and the same for keys.

    As in a Qwen3 dims are selected after norm and rotation, and what the norm of the kept dims misses is folded into
    its weight: one number for the queries of a layer and one for its keys, since one norm spans all heads. That weight
    has an entry for every dim, so a compressed OLMo 2 has a plain form at any ratio.
    """

    layout = "llama with query-key and output norms"
    query_key_norms = "all heads"
    model_class = Olmo2ForCausalLM
    compressed = (ModeGPTOlmo2Config, ModeGPTOlmo2ForCausalLM)
    parts = PARTS - {"input_layernorm.weight"} | {"post_feedforward_layernorm.weight"}
    parts |= {f"{norm}.weight" for norm in NORMS.values()}

    def biased(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ATTENTION * config.attention_bias

    def norms_first(self, config: PreTrainedConfig) -> bool:
        return False

    def tensors(self, layer: nn.Module, decomposed: Decomposed) -> dict[str, Tensor]:
        state, dims, head_dim = super().tensors(layer, decomposed), decomposed.dims, layer.self_attn.head_dim
        for norm, gain in zip(NORMS.values(), (decomposed.query_gain, decomposed.key_gain), strict=True):
            weight = kept_rows(layer.get_submodule(norm).weight, dims, head_dim)
            state[f"{norm}.weight"] = weight if gain is None else weight * gain.flatten()[0]  # that of all heads
        return state

    def places(self, layer: nn.Module) -> Places:
        places = super().places(layer)
        return places | {norm: places[linear] for linear, norm in NORMS.items()}

    def plain_state(self, layer: nn.Module) -> dict[str, Tensor]:
        state, attention = layer.state_dict(), layer.self_attn
        share = attention.rotary_index.shape[-1] / attention.head_dim  # a plain norm counts the zeros in
        return state | {f"{norm}.weight": state[f"{norm}.weight"] * share**0.5 for norm in NORMS.values()}
