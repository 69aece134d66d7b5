"""Calibration: stream token batches through one decoder layer at a time and keep only its Gram matrices."""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt import parallel
from modegpt.decompose.linalg import all_finite
from modegpt.errors import ModegptError
from modegpt.families import Family, family_of
from modegpt.families.base import Tap
from modegpt.gram import HALF, GramSum
from modegpt.inference import check_tokens, in_eval_mode
from modegpt.layer_statistics import LayerStatistics, PackedStatistics

Tokens = Tensor | Mapping[str, Tensor]
Calibration = Tokens | list[LayerStatistics] | PackedStatistics
Real = Tensor | slice
TINY = 1e-8  # a row of zeros has no direction


def collect(model: PreTrainedModel, tokens: Tokens, **options: Any) -> list[LayerStatistics]:
    """The statistics of all layers at once, to compress the same small model at many ratios: see `walk`.

    They take layers * channels^2 * 8 bytes (0.6 GB for SmolLM2-135M); a large model is better walked layer by layer.
    """
    return [statistics for _, statistics in walk(model, family_of(model), tokens, **options)]


def block_influence(model: PreTrainedModel, family: Family, data: Calibration, **options: Any) -> Tensor:
    """Block Influence of every layer, (layers,) float64: a walk that gathers no Gram matrix. See `walk`."""
    if isinstance(data, PackedStatistics):
        return torch.tensor(data.block_influence, dtype=torch.float64)
    scores = [statistics.block_influence for _, statistics in walk(model, family, data, grams=False, **options)]
    return torch.tensor(scores, dtype=torch.float64)


def walk(
    model: PreTrainedModel,
    family: Family,
    data: Calibration,
    *,
    grams: bool = True,
    attention: bool = False,
    inputs: Literal["dense", "compressed"] = "dense",
    **options: Any,
) -> Iterator[tuple[int, LayerStatistics]]:
    """Walk the calibration tokens through the model, layer by layer, for the statistics that MoDeGPT needs.

    Args:
        model: a dense model of the family; runs where its weights are (CPU or CUDA).
        data: (samples, length) int64, or a mapping with `input_ids` and `attention_mask` (both that shape), where
            masked tokens count nowhere; or what `collect` gathered, packed or not, which is passed on.
        grams: gather the Gram matrices; without, only the Block Influence.
        attention: gather that of what enters the attention as well.
        inputs, options: as in `stream`.

    Yields:
        (index, statistics) of each layer in turn. The caller may replace that layer of `family.layers(model)`.

    Raises:
        ModegptError: as `stream`; collected statistics of another model or for other inputs.
    """
    if isinstance(data, PackedStatistics):
        index = 0
        for found in data:  # enumerate would keep the last one while the next is unpacked
            yield index, found
            del found
            index += 1
        return
    shape = family.shape(model)
    if isinstance(data, list) and all(isinstance(entry, LayerStatistics) for entry in data):
        if inputs != "dense":
            raise ModegptError("collected statistics are those of dense inputs: give tokens for compressed ones")
        fits = (len(s.mlp) == shape.mlp if s.mlp is not None else not parallel.mine(i) for i, s in enumerate(data))
        if len(data) != len(family.layers(model)) or not all(fits):
            raise ModegptError("the collected statistics are not those of this model")
        if attention and any(s.attention is None for s in data if s.mlp is not None):
            raise ModegptError("these statistics lack what enters the attention: collect them with attention=True")
        yield from enumerate(data)
        return
    rows = partial(_head_rows, family, shape.query_key)
    taps = partial(_and_attention, family) if attention else family.taps
    for index, seen in stream(model, family, data, taps if grams else _no_taps, rows, inputs=inputs, **options):
        found = LayerStatistics(seen.tokens, seen.block_influence, **seen.grams, mlp_mean=seen.means.get("mlp"))
        del seen  # or it would live through the next layer
        yield index, found
        del found


@dataclass
class Observed:
    """What was seen of one layer: tokens, Block Influence, Gram matrices and means.

    Means are only of rows that are not split into heads. With several ranks only the one that decomposes the layer has
    the matrices and means.
    """

    tokens: int
    block_influence: float
    grams: dict[str, Tensor]
    means: dict[str, Tensor]


@dataclass
class States:
    """The calibration tokens of this rank on their way through the layers, batch by batch.

    hidden: what enters the next layer, (samples, length, width); kwargs: of every layer, for a window makes masks
    differ; real: which tokens are no padding, (samples * length,), or all of them.
    """

    hidden: list[Tensor]
    kwargs: list[list[dict[str, Any]]]
    real: list[Real]

    @property
    def tokens(self) -> int:
        """How many are no padding."""
        pairs = zip(self.hidden, self.real, strict=True)
        return sum(h[..., 0].numel() if isinstance(real, slice) else int(real.sum()) for h, real in pairs)


def enter(
    model: PreTrainedModel,
    family: Family,
    data: Tokens,
    *,
    batch_size: int = 4,
    hidden_on: torch.device | str | None = None,
    **_walking: Any,
) -> States:
    """The tokens in front of the first layer; options as in `stream`, which names the errors."""
    data = {name: parallel.own_share(tensor) for name, tensor in _checked(model, data).items()}
    states = States([], [], [])
    for batch in token_batches(model, data, batch_size):
        with torch.no_grad():
            hidden, kwargs = layer_inputs(model, family.layers(model), batch)
        hidden = hidden.to(hidden_on or hidden.device)
        states.hidden.append(hidden.pin_memory() if hidden.device != model.device else hidden)
        states.kwargs.append(kwargs)
        real = batch["attention_mask"].bool().flatten()
        states.real.append(slice(None) if real.all() else real)  # asked once: every answer waits for the GPU
    return states


Rows = Callable[[nn.Module, dict[str, Tensor], Real], Iterable[tuple[str, Tensor]]]


def _no_taps(_layer: nn.Module) -> dict[str, Tap]:
    return {}


def _and_attention(family: Family, layer: nn.Module) -> dict[str, Tap]:
    return family.taps(layer) | {"attention": (layer.self_attn.q_proj, "input")}


def plain_rows(_layer: nn.Module, seen: dict[str, Tensor], real: Real) -> Iterator[tuple[str, Tensor]]:
    """The rows of `stream` when nothing is to be done to them: (name, (real tokens, n)) of every tap."""
    for name, states in seen.items():
        yield name, real_rows(states, real)


@in_eval_mode
def stream(
    model: PreTrainedModel,
    family: Family,
    data: Tokens,
    taps: Callable[[nn.Module], dict[str, Tap]],
    rows: Rows = plain_rows,
    *,
    inputs: Literal["dense", "compressed"] = "dense",
    batch_size: int = 4,
    product_dtype: torch.dtype = torch.float32,
    progress: bool = False,
    resident: Callable[[nn.ModuleList], Iterable[tuple[int, nn.Module]]] = enumerate,
    skip: int = 0,
    hidden_on: torch.device | str | None = None,
    states: States | None = None,
) -> Iterator[tuple[int, Observed]]:
    """Run the tokens through one layer after the other, and gather Gram matrices of what passes the taps.

    Memory holds the hidden states of all tokens and the statistics of one layer, whatever the number of layers.
    The caller may replace the yielded layer of `family.layers(model)` before it asks for the next one. With several
    ranks each walks its share of the samples, and what is yielded is of all of them.

    Args:
        data: tokens as in `walk`.
        taps: where to look in a layer: name -> (module, "input", "output" or "heads"), see `tapped`.
        rows: makes of a batch's tapped activations the rows (..., real tokens, n) whose Gram matrices are wanted; gets
            the layer, the activations by name, and which of all tokens are real.
        inputs: what the next layer is calibrated on: the outputs of the dense layers (the paper, we believe), or
            those of the layers that have been put in their place.
        batch_size: samples that run together.
        product_dtype: precision of the products within a batch; batches are added up in float64.
        progress: show a progress bar.
        resident: brings the layers into memory one after the other, see `streaming`.
        skip: only run through the first so many layers, which an earlier run has done.
        hidden_on: where the hidden states wait between two layers; by default where the model is.
        states: `enter`ed by the caller, who takes them past each layer before asking for the next one.

    Yields:
        (index, what was observed) of each layer in turn; Gram matrices and means are float64, per real token.

    Raises:
        ModegptError: NaN or inf in the weights or the activations; the layer is named. Fewer samples than ranks.
    """
    if inputs not in ("dense", "compressed"):
        raise ModegptError(f"inputs is dense or compressed, got '{inputs}'")
    layers = family.layers(model)
    if skip == len(layers):
        return  # nothing is left to look at, so nothing to walk through
    in_layers = {id(weight) for weight in layers.parameters()}
    for name, weight in model.named_parameters():  # the layers' own are checked as they are reached
        if id(weight) not in in_layers and not all_finite(weight):
            raise ModegptError(f"{name} holds NaN or inf")
    moving = states is None
    states = states or enter(model, family, data, batch_size=batch_size, hidden_on=hidden_on)
    hidden, kwargs, real, tokens = states.hidden, states.kwargs, states.real, states.tokens

    # no_grad around the whole generator would keep what it yielded last alive through the next layer
    @torch.no_grad()
    def watch(index: int, layer: nn.Module) -> tuple[dict[str, GramSum], dict[str, Tensor], Tensor]:
        """Run all batches through the layer; a function, so that the last batch's activations do not outlive it."""
        sums: dict[str, GramSum] = {}
        totals: dict[str, Tensor] = {}
        influence = torch.zeros((), dtype=torch.float64, device=model.device)
        for b, states in enumerate(hidden):
            before = states.to(model.device, non_blocking=True)
            with tapped(taps(layer)) as seen:
                after = layer(before, **kwargs[b][index])
            influence += (1 - _cosines(*(real_rows(t, real[b]) for t in (before, after)))).sum(dtype=torch.float64)
            for name, found in rows(layer, seen, real[b]):
                sums.setdefault(name, GramSum(product_dtype)).add(found)
                if found.ndim == 2:
                    # float64 sums take a GPU ten times longer, and half precision does not need them
                    exact = torch.float32 if found.dtype in HALF else torch.float64
                    totals[name] = totals.get(name, 0) + found.sum(0, dtype=exact).double()
            if moving and inputs == "dense":  # last: what was seen may be these very states
                states.copy_(after, non_blocking=True)
            bar.advance(task)
        return sums, totals, influence

    @torch.no_grad()
    def run(index: int, layer: nn.Module) -> None:
        for b, states in enumerate(hidden):
            states.copy_(layer(states.to(model.device), **kwargs[b][index]))

    with Progress(transient=True, disable=not progress or parallel.rank() > 0) as bar:
        todo = (len(layers) - skip) * len(hidden)
        task = bar.add_task("score layers" if taps is _no_taps else "calibrate", total=todo)
        for index, layer in resident(layers):
            if not all(map(all_finite, layer.parameters())):
                raise ModegptError(f"layer {index}: its weights hold NaN or inf")
            if index < skip:
                run(index, layer)
                continue
            yield index, _observed(index, *watch(index, layer), tokens, product_dtype)
            if inputs == "compressed":
                run(index, layers[index])


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """Of the rows (tokens, n), (tokens,); torch's own function makes more float32 copies of half-precision rows."""
    exact = torch.float32 if left.dtype in HALF else left.dtype
    norms = [torch.linalg.vector_norm(rows, dim=-1, dtype=exact).clamp(min=TINY) for rows in (left, right)]
    return (left.to(exact) * right).sum(-1) / (norms[0] * norms[1])


def _observed(
    index: int,
    sums: dict[str, GramSum],
    totals: dict[str, Tensor],
    influence: Tensor,
    tokens: int,
    product_dtype: torch.dtype,
) -> Observed:
    """Sums over this rank's tokens -> means over those of all ranks. The sums are gone then."""
    count = influence.new_tensor(tokens)
    parallel.add_up(influence), parallel.add_up(count)
    if not torch.isfinite(influence):  # one NaN or inf makes it NaN
        raise ModegptError(f"layer {index}: its activations hold NaN or inf")
    for part in (*(block for total in sums.values() for block in total.blocks), *totals.values()):
        parallel.add_up(part, to=parallel.owner(index))
    grams, means = {}, {}
    if parallel.mine(index):
        grams = {name: total.matrix().div_(count) for name, total in sums.items()}
        means = {name: total / count for name, total in totals.items()}
        if not all(map(all_finite, grams.values())):
            raise ModegptError(f"layer {index}: its activations are too large to be squared in {product_dtype}")
    return Observed(int(count), float(influence / count), grams, means)


def token_batches(model: PreTrainedModel, tokens: Tokens, batch_size: int) -> list[dict[str, Tensor]]:
    """Split into batches on the model's device, each with its attention mask.

    Args:
        tokens: (samples, length) int64, or a mapping with `input_ids` and perhaps `attention_mask`, both that shape.

    Returns:
        Inputs of the model, (at most batch_size, length) each; with `position_ids` where there is padding.

    Raises:
        ModegptError: no tokens, or tensors of another shape.
    """
    batches = _checked(model, tokens)
    mask = batches["attention_mask"]
    if not mask.all():  # positions count from the first real token, also behind left padding
        batches["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    split = [tensor.to(model.device).split(batch_size) for tensor in batches.values()]
    return [dict(zip(batches, parts, strict=True)) for parts in zip(*split, strict=True)]


def _checked(model: PreTrainedModel, tokens: Tokens) -> dict[str, Tensor]:
    """Ids and mask, or a ModegptError: no tokens, tensors of another shape, tokens that the model does not have."""
    entries = {"input_ids": tokens} if not isinstance(tokens, Mapping) else tokens
    ids = entries.get("input_ids")
    check_tokens(model, ids, "calibration tokens")
    mask = entries.get("attention_mask", torch.ones_like(ids))
    if not isinstance(mask, Tensor) or ids.shape != mask.shape or not mask.any():
        raise ModegptError(
            "the attention mask is non-empty, has the shape of the calibration tokens, and is 1 where one is real"
        )
    return {"input_ids": ids, "attention_mask": mask}


def layer_inputs(model: PreTrainedModel, layers: nn.ModuleList, batch: dict) -> tuple[Tensor, list[dict[str, Any]]]:
    """Let the model itself embed a batch and make masks and positions, with layers that pass everything on.

    Returns:
        The hidden states that enter the first layer, (samples, length, width), and the keyword arguments of every
        layer: a window makes masks differ.
    """
    hidden: list[Tensor] = []
    found: list[dict[str, Any]] = []

    def pass_on(states: Tensor | None = None, **kwargs: Any) -> Tensor:
        states = kwargs.pop("hidden_states", states)
        hidden.append(states)
        found.append(kwargs)
        return states

    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = pass_on
        model.base_model(**batch, use_cache=False)
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
    return hidden[0], found


@contextmanager
def tapped(taps: dict[str, Tap]) -> Iterator[dict[str, Tensor]]:
    """Collect the activations that pass the taps inside the block: name -> (batch, tokens, n) or as it has them.

    The side "heads" of an attention gives three, whatever the name of its tap: "query" (batch, heads, tokens, d), "key"
    and "value" (batch, kv_heads, tokens, d), as they are compared and mixed, after biases, norms and rotation.
    """
    seen: dict[str, Tensor] = {}

    def hook(name: str, side: str):
        def record(_module: nn.Module, args: tuple, output: Tensor) -> None:
            seen[name] = args[0] if side == "input" else output

        return record

    with ExitStack() as stack:
        for name, (module, side) in taps.items():
            if side == "heads":
                stack.enter_context(_tapped_heads(module, seen))
            else:
                stack.callback(module.register_forward_hook(hook(name, side)).remove)
        yield seen


@contextmanager
def _tapped_heads(attention: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Give the module an attention function of its own, as transformers lets one, which passes everything on.

    Under the name that all models ask for, it would see those of other threads as well.
    """
    modeling = sys.modules[type(attention).__module__]
    functions, config = modeling.ALL_ATTENTION_FUNCTIONS, attention.config
    attend = functions.get_interface(config._attn_implementation, modeling.eager_attention_forward)
    name, named = f"tapped {id(attention)}", copy.copy(config)
    named._attn_implementation = name

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.update(query=query, key=key, value=value)
        module.config = config  # some functions read the name there
        found = attend(module, query, key, value, *args, **kwargs)
        module.config = named
        return found

    functions[name], attention.config = record, named
    try:
        yield
    finally:
        attention.config = config
        del functions[name]


def real_rows(states: Tensor, real: Real) -> Tensor:
    """(batch, tokens, ...) or (batch * tokens, n) -> (real tokens, ...)."""
    return (states.flatten(0, 1) if states.ndim > 2 else states)[real]  # OPT's MLP has its tokens in one row


def _head_rows(
    family: Family, head_dim: int, layer: nn.Module, seen: dict[str, Tensor], real: Real
) -> Iterator[tuple[str, Tensor]]:
    """The rows that MoDeGPT wants, (..., real tokens, n) each, split into heads."""
    if not seen:
        return
    yield "mlp", real_rows(seen["mlp"], real)
    if "attention" in seen:
        yield "attention", real_rows(seen["attention"], real)

    def by_head(states: Tensor) -> Tensor:
        """(batch, tokens, heads, d) -> (heads, real tokens, d)."""
        return real_rows(states, real).transpose(0, 1)

    query, key, value = (by_head(states.transpose(1, 2)) for states in family.head_states(layer, seen))
    yield "query", query.unflatten(0, (len(key), -1))
    yield "key", key
    yield "value", value
    if family.query_key_norms:
        projected = (seen[name].unflatten(-1, (-1, head_dim)) for name in ("query_projected", "key_projected"))
        query, key = map(by_head, projected)
        yield "query_projected", query.unflatten(0, (len(key), -1))
        yield "key_projected", key
