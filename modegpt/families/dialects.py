"""Models that are a Llama or an OPT under another name, and how they are rewritten as one.

A dialect says how each tensor of the rewritten model is made of the source's. The same rule serves a model in memory
and one that is read layer by layer; a tensor that does not change is shared, not copied.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from modegpt.errors import ModegptError
from modegpt.families import attributes
from modegpt.families.base import empty_model

Read = Callable[[str], Tensor]  # a tensor of the source by its name there


def unchanged(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    """The source has this tensor under this name."""
    return read(name)


def nothing(config: PreTrainedConfig) -> dict[str, Any]:
    """No entry of the config changes."""
    return {}


def llama(config: PreTrainedConfig) -> str:
    """It is rewritten as a Llama, whatever its config says."""
    return "llama"


@dataclass(frozen=True)
class Dialect:
    """A model that computes what a model of another name does.

    Args:
        title: what people call it.
        family: gives the model_type of what it is rewritten as.
        entries: entries of the rewritten config that are not the source's of that name.
        tensor: (name in the rewritten model, read, source config) -> the tensor.
        known: entries of the source's config that `entries` and `tensor` take care of, beside those of a Llama.
        only: entries of the source's config that must have this value.
    """

    title: str
    family: Callable[[PreTrainedConfig], str] = llama
    entries: Callable[[PreTrainedConfig], dict[str, Any]] = nothing
    tensor: Callable[[str, Read, PreTrainedConfig], Tensor] = unchanged
    known: frozenset[str] = frozenset()
    only: Mapping[str, Any] | None = None


def part(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> up_proj"""
    return name.split(".")[-2]


def head_dim(config: PreTrainedConfig) -> int:
    """Dims of one head, which not every config says."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def times(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself if the factor is 1; half precision is rounded once, after the product."""
    return tensor if factor == 1 else (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor).to(tensor)


# --- windows: what has one becomes a Qwen2, whose biases may be zero


def windowed(config: PreTrainedConfig) -> str:
    """It is rewritten as a Llama, or with a window as a Qwen2."""
    return "qwen2" if config.sliding_window is not None else "llama"


def with_window(config: PreTrainedConfig) -> dict[str, Any]:
    """All layers have the window, if there is one."""
    window = config.sliding_window
    if window is None:
        return {}
    types = ["sliding_attention"] * config.num_hidden_layers
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0, "layer_types": types}


def zeros(name: str, read: Read) -> Tensor:
    """For a bias that the source does not have."""
    weight = read(f"{name.removesuffix('bias')}weight")
    return weight.new_zeros(len(weight))


def mistral(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    return zeros(name, read) if name.endswith("proj.bias") else read(name)


def qwen2(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    return zeros(name, read) if name.endswith("o_proj.bias") else read(name)


# --- the others


def phi3(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    own = part(name)
    if name.endswith("bias"):
        return zeros(name, lambda weight: phi3(weight, read, config))
    if own in ("q_proj", "k_proj", "v_proj"):
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        rows = read(name.replace(own, "qkv_proj")).split([count * head_dim(config) for count in heads])
        return rows["qkv".index(own[0])]
    if own in ("gate_proj", "up_proj"):
        return read(name.replace(own, "gate_up_proj")).chunk(2)[own == "up_proj"]
    return read(name)


# A head that is the embedding takes over the embedding's factor; the last norm, "norm", makes up for that


def granite(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    tied = config.tie_word_embeddings
    factors = {
        "embed_tokens": config.embedding_multiplier,
        "q_proj": config.attention_multiplier * head_dim(config) ** 0.5,  # a Llama divides by that root
        "o_proj": config.residual_multiplier,
        "down_proj": config.residual_multiplier,
        "norm": 1 / (config.embedding_multiplier * config.logits_scaling) if tied else 1,
        "lm_head": 1 / config.logits_scaling,
    }
    return times(read(name), factors.get(part(name), 1))


def gemma(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    tensor, own = read(name), part(name)
    root = torch.tensor(config.hidden_size**0.5, dtype=tensor.dtype)  # rounded as Gemma rounds it
    if own == "embed_tokens":
        return tensor * root
    if own.endswith("norm"):
        weight = 1 + tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return (weight / root.item() if own == "norm" and config.tie_word_embeddings else weight).to(tensor)
    return tensor


GPT2 = {"self_attn_layer_norm": "ln_1", "final_layer_norm": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
GPT2 |= {"out_proj": "attn.c_proj"} | dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attn.c_attn")
GPT2_ENDS = {"embed_tokens": "transformer.wte", "embed_positions": "transformer.wpe", "lm_head": "lm_head"}
GPT2_ENDS |= {"final_layer_norm": "transformer.ln_f"}


def gpt2(name: str, read: Read, config: PreTrainedConfig) -> Tensor:
    own, kind = name.split(".")[-2:]
    layer = re.match(r"model\.decoder\.layers\.(\d+)\.", name)
    if not layer:
        tensor = read(f"{GPT2_ENDS[own]}.{kind}")
        # an OPT's first position is its third row
        return torch.cat([tensor.new_zeros(2, tensor.shape[1]), tensor]) if own == "embed_positions" else tensor
    tensor = read(f"transformer.h.{layer[1]}.{GPT2[own]}.{kind}")
    if own in ("q_proj", "k_proj", "v_proj"):
        tensor = tensor.chunk(3, -1)["qkv".index(own[0])]
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor  # GPT-2 has (in, out)


def gpt2_entries(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "ffn_dim": config.n_inner or 4 * config.n_embd,
        "word_embed_proj_dim": config.n_embd,
        "max_position_embeddings": config.n_positions,
        "dropout": config.resid_pdrop,
        "attention_dropout": config.attn_pdrop,
        "activation_function": config.activation_function,
        "init_std": config.initializer_range,
    }


DIALECTS: dict[str, Dialect] = {
    "mistral": Dialect("Mistral", windowed, with_window, mistral, frozenset(["sliding_window"])),
    "ministral": Dialect(
        "Ministral",
        windowed,
        lambda config: with_window(config) and with_window(config) | {"layer_types": config.layer_types},
        mistral,
        frozenset(["sliding_window", "layer_types"]),
    ),
    "qwen2": Dialect("Qwen2 and 2.5", windowed, lambda config: {"attention_bias": True}, qwen2, attributes.WINDOWS),
    "phi3": Dialect(
        "Phi-3",
        windowed,
        with_window,
        phi3,
        frozenset("sliding_window original_max_position_embeddings embd_pdrop resid_pdrop".split()),
    ),
    "granite": Dialect(
        "Granite",
        tensor=granite,
        known=frozenset("embedding_multiplier attention_multiplier residual_multiplier logits_scaling".split()),
    ),
    "gemma": Dialect("Gemma 1", tensor=gemma, only={"use_bidirectional_attention": None}),
    "gpt2": Dialect(
        "GPT-2",
        lambda config: "opt",
        gpt2_entries,
        gpt2,
        frozenset("n_positions n_embd n_layer n_head n_inner activation_function initializer_range".split())
        | frozenset("resid_pdrop embd_pdrop attn_pdrop".split()),
        {
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
}
SHARED = (*attributes.LLAMA, "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "dtype")  # under one name
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Rewriting:
    """A model in the terms of its family, and how its tensors are made of the source's.

    `model` is the source itself if there is nothing to rewrite, else one without weights (parameters on the meta
    device). `parts`: name of each of its tensors -> those of the source that it is made of.
    """

    model: PreTrainedModel
    parts: dict[str, list[str]]
    make: Callable[[str, Read], Tensor]


def rewriting(model: PreTrainedModel) -> Rewriting:
    """How a model, which may be without weights, is rewritten.

    Raises:
        ModegptError: an entry of the config or a part that the dialect does not know; it is named.
    """
    config, kind, source = model.config, model.config.model_type, model.state_dict()
    dialect = DIALECTS.get(kind)
    family = dialect.family(config) if dialect else kind
    if family == kind:
        return Rewriting(model, {name: [name] for name in _untied(model)}, lambda name, read: read(name))
    if not isinstance(model, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]):
        raise ModegptError(f"a causal language model is needed, got {type(model).__name__}")
    attributes.check_attributes(config, attributes.LLAMA | dialect.known, dialect.only)
    declared, own = AutoConfig.for_model(family).to_dict(), type(config)()
    shared = [name for name in SHARED if name in declared and hasattr(own, name)]  # what is in neither nobody reads
    shared += ["head_dim"] * hasattr(config, "head_dim")  # but this, which few declare
    entries = {name: getattr(config, name) for name in shared}
    entries |= dialect.entries(config) | {"rewritten_from": kind}
    new = AutoConfig.for_model(family, **entries)
    new._attn_implementation, new._name_or_path = config._attn_implementation, config._name_or_path
    empty = empty_model(new, model.dtype)
    empty.requires_grad_(any(weight.requires_grad for weight in model.parameters()))
    empty.generation_config = model.generation_config

    shapes = {name: tensor.to("meta") for name, tensor in source.items()}
    parts: dict[str, list[str]] = {}

    def make(name: str, read: Read) -> Tensor:
        return dialect.tensor(name, read, config)

    for name, wanted in _untied(empty).items():
        used = parts[name] = []

        def read(part: str, used: list[str] = used) -> Tensor:
            if part not in shapes:
                raise ModegptError(f"this {dialect.title} has no part '{part}'")
            used.append(part)
            return shapes[part]

        if make(name, read).shape != wanted.shape:
            raise ModegptError(f"'{used[0]}' of this {dialect.title} has a shape that modegpt does not know")
    if unused := sorted(_untied(model).keys() - set().union(*parts.values())):
        raise ModegptError(f"this {dialect.title} has an unknown part '{unused[0]}'")
    return Rewriting(empty, parts, make)


def _untied(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model, less a head that is the embedding."""
    tied = {HEAD} if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def rewritten(model: PreTrainedModel) -> PreTrainedModel:
    """The Llama, OPT or Qwen2 that computes what a model of a dialect does; any other model as it is.

    What does not change is shared with the source. `config.rewritten_from` says what it was.

    Raises:
        ModegptError: as `rewriting`.
    """
    new, state = rewriting(model), model.state_dict()
    if new.model is model:
        return model
    made = {name: new.make(name, state.__getitem__) for name in new.parts}
    new.model.load_state_dict(made, strict=False, assign=True)
    new.model.tie_weights()
    own = dict(model.named_buffers(remove_duplicate=False))
    for name, buffer in list(new.model.named_buffers()):  # rotary frequencies, which no state dict holds
        module, _, leaf = name.rpartition(".")
        setattr(new.model.get_submodule(module), leaf, own.get(name, buffer.to(model.device)))
    return new.model
