"""What the pipeline must know of a model family, and nothing of statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from modegpt.allocate import LayerShape, Ranks
from modegpt.errors import ModegptError


@dataclass(frozen=True)
class FreeMatrices:
    """The matrices of a layer that are solved for again; tokens are rows, so a map is (in, out).

    down (channels, width); value (kv_heads, width, d); output (kv_heads, group, d, width); query_key, of all
    queries and of all keys, (width, rows) each, where these may go through one projection.
    """

    down: Tensor
    value: Tensor
    output: Tensor
    query_key: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Decomposed:
    """What the three decompositions decided for one layer.

    channels (mlp rank,) and dims (kv_heads, query-key rank) are indices to keep; the matrices are as in
    `FreeMatrices`, shrunk; down_shift (width,) goes to the bias of the MLP's output, if there is one. Where nothing
    rotates, query_key may hold two maps (heads, d, rank) to multiply W_Q and W_K by, instead of a choice of dims.
    query_gain (kv_heads, group) and key_gain (kv_heads,) go to the weights of query-key norms, if there are any; a norm
    of all heads has the same number for each. shared, two maps (width, rank) and (rank, rows), makes all queries and
    keys instead of W_Q and W_K.
    """

    channels: Tensor
    dims: Tensor
    matrices: FreeMatrices
    down_shift: Tensor | None = None
    query_key: tuple[Tensor, Tensor] | None = None
    query_gain: Tensor | None = None
    key_gain: Tensor | None = None
    shared: tuple[Tensor, Tensor] | None = None


Tap = tuple[nn.Module, Literal["input", "output", "heads"]]  # a module, and which side of it, see `calibrate.tapped`
# For each shrunk linear map of a layer: the axis of its weight that shrank, and where its entries go in the dense one
Places = dict[str, tuple[int, Tensor]]
Entry = TypeVar("Entry")


class Family(Protocol):
    """One model family: where its modules are, its rotary layout, its compressed counterpart."""

    layout: str  # families whose layers have the same parts share a name: what the baselines list is found under it
    rotary: bool
    linears: tuple[str, ...]  # all linear maps of a layer
    up: tuple[str, ...]  # those of them that lead into the MLP's channels
    # whether a norm of each head, or one of all heads, stands between the projections and what attention compares
    query_key_norms: Literal["head", "all heads"] | None = None
    mlp_size: str  # what the config calls the MLP's width
    outputs: tuple[str, str]  # W_O and W_down
    model_class: type[PreTrainedModel]

    def check(self, model: PreTrainedModel) -> None:
        """Raise ModegptError naming the first part of the model that this family does not understand."""

    def down_bias(self, config: PreTrainedConfig) -> bool:
        """Whether the MLP's output has a bias."""

    def learned_positions(self, config: PreTrainedConfig) -> int | None:
        """How many positions the model has learnt; None if it computes them."""

    def norms_first(self, config: PreTrainedConfig) -> bool:
        """Whether every block and the head start with a norm of the residual stream, and embeddings are as wide."""

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers."""

    def shape(self, model: PreTrainedModel) -> LayerShape:
        """Sizes of one layer and what they cost."""

    def taps(self, layer: nn.Module) -> dict[str, Tap]:
        """Where the activations "mlp" can be read, and those of the "heads".

        With query-key norms also what these get, "query_projected" and "key_projected".
        """

    def head_states(self, layer: nn.Module, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What the tap of the heads has seen -> what is decomposed: values without biases, which `fill` folds away.

        Queries (batch, heads, tokens, d), keys and values (batch, kv_heads, tokens, d).
        """

    def matrices(self, layer: nn.Module) -> FreeMatrices:
        """Read the free matrices of a dense layer."""

    def shell(self, model: PreTrainedModel, ranks: list[Ranks]) -> PreTrainedModel:
        """The compressed model, everything but its layers shared with `model`, its layers empty (meta device)."""

    def fill(self, shell_layer: nn.Module, layer: nn.Module, decomposed: Decomposed) -> None:
        """Give an empty layer of the shell its weights."""

    def places(self, layer: nn.Module) -> Places:
        """Where the entries of a compressed layer go in a dense one that computes the same, the rest being zero."""

    def plain_state(self, layer: nn.Module) -> dict[str, Tensor]:
        """The tensors of a compressed layer that go there. Raises ModegptError if a dense one cannot hold them."""
        return layer.state_dict()


def check_layers(family: Family, model: PreTrainedModel, parts: set[str]) -> None:
    """Raise ModegptError unless every layer has exactly these parts, and plain linear maps where they are wanted."""
    if not isinstance(model, family.model_class):
        raise ModegptError(f"a causal language model is needed, got {type(model).__name__}")
    name = family.model_class.__name__.removesuffix("ForCausalLM")
    for index, layer in enumerate(family.layers(model)):
        if type(layer.self_attn).__module__ != family.model_class.__module__:
            raise ModegptError("compress took this model apart already: load it again, or compress a deep copy")
        found = {part for part, _ in (*layer.named_parameters(), *layer.named_buffers())}
        for part in sorted(found ^ parts):
            state = "an unknown part" if part in found else "no part"
            raise ModegptError(f"layer {index} has {state} '{part}': this is no {name} that the kit understands")
        for part in family.linears:
            if type(layer.get_submodule(part)) is not nn.Linear:
                kind = type(layer.get_submodule(part)).__name__
                raise ModegptError(f"layer {index}: '{part}' is a {kind}, a plain nn.Linear is needed")


def entry_of(family: Family, table: Mapping[str, Entry], method: str) -> Entry:
    """What a method lists for the layout of a family. Raises ModegptError if it lists nothing."""
    if family.layout not in table:
        raise ModegptError(f"{method} has no model for the layout '{family.layout}' (it has {', '.join(table)})")
    return table[family.layout]


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config, parameters on the meta device, in eval mode, learning nothing."""
    with init_empty_weights(include_buffers=False), no_init_weights():  # drawing them takes time on any device
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # which is a part of what is left out
    return model.eval().requires_grad_(False)


def derived_config(kind: type[PreTrainedConfig], model: PreTrainedModel, **changes: Any) -> PreTrainedConfig:
    """The config of another architecture with the entries of a model's own, some of them changed or added."""
    entries = model.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map"):
        entries.pop(name, None)
    config = kind(**entries | changes)
    config._attn_implementation = model.config._attn_implementation
    return config


def first_dims(rows: int, heads: int) -> Tensor:
    """The first dims of every head, (heads, rows / heads)."""
    return torch.arange(rows // heads).expand(heads, -1)


def in_heads(dims: Tensor, head_dim: int) -> Tensor:
    """Rows of a projection to heads of `head_dim`, from the dims (heads, rank) within each head."""
    return (head_dim * torch.arange(len(dims))[:, None] + dims).flatten()


def fill_layer(shell_layer: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give an empty layer exactly these tensors, the floating ones in this dtype; weights that fit are shared."""
    state = {name: (t.to(dtype) if t.is_floating_point() else t).detach().contiguous() for name, t in state.items()}
    shell_layer.load_state_dict(state, assign=True)


def rank_lists(ranks: Sequence[Ranks]) -> dict[str, list[int]]:
    """The ranks of every layer as the config of a compressed model lists them."""
    found = {
        "query_key_ranks": [r.query_key for r in ranks],
        "value_ranks": [r.value for r in ranks],
        "mlp_ranks": [r.mlp for r in ranks],
    }
    shared = [r.shared for r in ranks]
    return found | {"shared_ranks": shared} if any(shared) else found
