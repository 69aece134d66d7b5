"""One decoder layer of a real model at work, for lessons: its weights, and what passes through it on real text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt.calibrate import layer_inputs, tapped, token_batches
from modegpt.errors import ModegptError
from modegpt.families import Family, family_of
from modegpt.sources import cache_dir, load_model, load_text, token_windows

SEQ_LEN = 512
BATCH = 4
FORMAT = 1  # of the kept files; raise it when what they hold changes


@dataclass(frozen=True)
class LayerActivations:
    """Weights and activations of one dense layer, all float32; tokens are rows and a linear map is (in, out).

    Weights: W_Q (kv_heads, group, width, d), W_K and W_V (kv_heads, width, d), W_O (kv_heads, group, d, width),
    W_U and W_G (width, channels), W_D (channels, width); W_G is None where the MLP has no gate (OPT).

    Activations: the residual stream before and after the layer, x_in and x_out (tokens, width); what the two modules
    read behind their norms, X_attention and X_mlp (tokens, width); query (kv_heads, group, tokens, d) and key
    (kv_heads, tokens, d) as attention compares them, so rotated in a Llama; value (kv_heads, tokens, d);
    a (tokens, channels), the input of W_D.

    `length` consecutive tokens belong to one sequence. cos and sin (length, d) are its rotary embedding, None in OPT.
    """

    index: int
    length: int
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    W_U: Tensor
    W_D: Tensor
    W_G: Tensor | None
    x_in: Tensor
    x_out: Tensor
    X_attention: Tensor
    X_mlp: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    a: Tensor
    cos: Tensor | None
    sin: Tensor | None


@torch.no_grad()
def layer_activations(
    index: int,
    part: Literal["calibration", "evaluation"] = "calibration",
    *,
    model: str = "smollm2-135m",
    samples: int = 16,
) -> LayerActivations:
    """What layer `index` of `model` does on `samples` windows of 512 tokens of that part of wiki-passages.

    The residual stream that enters the layer is kept in the cache folder (19 MB for 16 windows of SmolLM2), so only
    the first call runs the layers below.

    Raises:
        ModegptError: no such layer, part or model; fewer than one sample.
    """
    if part not in ("calibration", "evaluation"):
        raise ModegptError(f"the text has a calibration and an evaluation part, got '{part}'")
    if samples < 1:
        raise ModegptError(f"samples must be at least 1, got {samples}")
    dense, tokenizer = load_model(model, dtype="float32")
    family = family_of(dense)
    count = len(family.layers(dense))
    if not 0 <= index < count:
        raise ModegptError(f"{model} has layers 0 to {count - 1}, got {index}")

    kept = cache_dir() / "activations" / f"{Path(model).name}-{index}-{part}-{samples}x{SEQ_LEN}-{FORMAT}.safetensors"
    entered = _read(kept) if model in ("smollm2-135m", "opt-mini") else None  # a folder's weights may change
    if entered is None:
        text = load_text("wiki-passages", part)
        tokens = token_windows(text, tokenizer, samples, SEQ_LEN, seed=0, what="wiki-passages")
        hidden = [_below(dense, family, batch, index) for batch in token_batches(dense, tokens, BATCH)]
        entered = {"tokens": tokens, "hidden": torch.cat(hidden)}
        _write(kept, entered)
    return _observe(dense, family, index, entered["tokens"], entered["hidden"])


def _below(model: PreTrainedModel, family: Family, batch: dict[str, Tensor], index: int) -> Tensor:
    """The residual stream that enters layer `index`, (samples, length, width)."""
    layers = family.layers(model)
    hidden, kwargs = layer_inputs(model, layers, batch)
    for layer, arguments in zip(layers[:index], kwargs, strict=False):
        hidden = layer(hidden, **arguments)
    return hidden


def _observe(model: PreTrainedModel, family: Family, index: int, tokens: Tensor, hidden: Tensor) -> LayerActivations:
    layers, d = family.layers(model), family.shape(model).query_key
    layer = layers[index]
    gates = {name: layer.get_submodule(path) for name, path in zip(("W_U", "W_G"), reversed(family.up), strict=False)}
    taps = family.taps(layer) | {
        "X_attention": (layer.self_attn.q_proj, "input"),
        "X_mlp": (gates["W_U"], "input"),
    }
    parts: list[dict[str, Tensor]] = []
    for batch, x_in in zip(token_batches(model, tokens, BATCH), hidden.split(BATCH), strict=True):
        kwargs = layer_inputs(model, layers, batch)[1][index]
        with tapped(taps) as seen:
            x_out = layer(x_in, **kwargs)
        query, key, value = (states.transpose(0, 1).flatten(1, 2) for states in family.head_states(layer, seen))
        flat = {name: seen[name].reshape(-1, seen[name].shape[-1]) for name in ("X_attention", "X_mlp")}
        flat |= {"a": seen["mlp"].reshape(-1, seen["mlp"].shape[-1])}
        flat |= {"x_in": x_in.flatten(0, 1), "x_out": x_out.flatten(0, 1)}
        parts.append(flat | {"query": query, "key": key, "value": value})
    joined = {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}
    kv_heads = len(joined["key"])
    joined["query"] = joined["query"].unflatten(0, (kv_heads, -1))
    rotary = kwargs.get("position_embeddings") or (None, None)
    free = family.matrices(layer)
    return LayerActivations(
        index=index,
        length=tokens.shape[1],
        W_Q=_heads(layer.self_attn.q_proj, d).unflatten(0, (kv_heads, -1)),
        W_K=_heads(layer.self_attn.k_proj, d),
        W_V=free.value.detach(),
        W_O=free.output.detach(),
        W_D=free.down.detach(),
        **{"W_G": None} | {name: linear.weight.T.detach() for name, linear in gates.items()},
        **joined,
        cos=rotary[0] if rotary[0] is None else rotary[0][0],
        sin=rotary[1] if rotary[1] is None else rotary[1][0],
    )


def _heads(linear: nn.Linear, d: int) -> Tensor:
    """A projection's weight as (heads, width, d)."""
    return linear.weight.detach().unflatten(0, (-1, d)).mT


def _read(kept: Path) -> dict[str, Tensor] | None:
    """The kept file, None if there is none or it is damaged."""
    try:
        return load_file(kept)
    except (OSError, SafetensorError):
        return None


def _write(kept: Path, tensors: dict[str, Tensor]) -> None:
    """Keep the tensors; a cache that cannot be written costs time, not the lesson."""
    from contextlib import suppress
    from tempfile import NamedTemporaryFile

    with suppress(OSError, SafetensorError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            partial = Path(file.name)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(kept)
