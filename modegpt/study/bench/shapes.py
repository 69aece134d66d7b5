"""Published model shapes with random weights: speed and memory need no download, and quality is not asked here."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from modegpt.errors import ModegptError


def _llama(width: int, channels: int, layers: int, heads: int, kv_heads: int, **more: object) -> dict[str, object]:
    shape = {"model_type": "llama", "hidden_size": width, "intermediate_size": channels, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 32000}
    return shape | {"max_position_embeddings": 4096} | more


def _opt(width: int, layers: int, heads: int) -> dict[str, object]:
    shape = {"model_type": "opt", "hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return shape | {"num_hidden_layers": layers, "num_attention_heads": heads}


SHAPES = {
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, vocab_size=128256, max_position_embeddings=8192),
    "opt-6.7b": _opt(4096, 32, 32),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, vocab_size=49152, tie_word_embeddings=True),
    "tiny-llama": _llama(64, 172, 2, 4, 2, vocab_size=256, max_position_embeddings=256),
    "tiny-opt": _opt(64, 2, 4),
}


def config_of(shape: str, layers: int | None = None) -> PreTrainedConfig:
    """The config of a published shape, with fewer layers if asked to.

    Raises:
        ModegptError: an unknown shape, or not 1 <= layers <= its own number.
    """
    if shape not in SHAPES:
        raise ModegptError(f"unknown shape '{shape}': use {', '.join(SHAPES)}")
    full = SHAPES[shape]["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= full:
        raise ModegptError(f"{shape} has {full} layers, got {layers}")
    entries = dict(SHAPES[shape])
    return AutoConfig.for_model(entries.pop("model_type"), **entries | {"num_hidden_layers": layers or full})


def random_model(
    shape: str, layers: int | None = None, *, device: str | torch.device = "cuda", dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """A dense model of that shape, its weights drawn on the device by its own initialisation, always the same."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(shape, layers), dtype=dtype)
    return model.eval().requires_grad_(False)


def random_tokens(config: PreTrainedConfig, samples: int, length: int) -> torch.Tensor:
    """Token ids (samples, length) int64 on the CPU, always the same."""
    return torch.randint(config.vocab_size, (samples, length), generator=torch.Generator().manual_seed(0))
