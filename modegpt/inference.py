"""What every forward pass of the kit needs: eval mode, and tokens and positions that the model has."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modegpt.errors import ModegptError, ModegptWarning

Function = TypeVar("Function", bound=Callable[..., Any])


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout inside the block; every module is then as it was, in training or not."""
    trained = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in trained:
        module.training = False
    known = [ref(module) for module in trained]  # layers that the block replaces must not stay in memory
    del trained[:]
    module = None
    try:
        yield
    finally:
        for module in filter(None, (seen() for seen in known)):
            module.training = True


def in_eval_mode(function: Function) -> Function:
    """A function, or a generator, whose first argument is a model: that runs in `eval_mode`."""

    @wraps(function)
    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with eval_mode(model):
            return function(model, *args, **kwargs)

    @wraps(function)
    def walk(model: nn.Module, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with eval_mode(model):
            yield from function(model, *args, **kwargs)

    return walk if isgeneratorfunction(function) else run


def check_tokens(model: PreTrainedModel, ids: object, what: str = "tokens") -> None:
    """Raise ModegptError unless `ids` is a (samples, length) tensor of token ids that the model has, not empty.

    Warns, as `check_length`, of a length that a rotary model was not made for.
    """
    if not isinstance(ids, Tensor):
        raise ModegptError(f"{what} are a (samples, length) tensor of token ids, got a {type(ids).__name__}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ModegptError(f"{what} are token ids, whole numbers (int64), got {ids.dtype}")
    if ids.ndim != 2 or not ids.numel():
        raise ModegptError(f"{what} are a non-empty (samples, length) tensor, got {tuple(ids.shape)}")
    if not isinstance(model, PreTrainedModel):
        return  # something else that gives logits
    vocabulary = model.get_input_embeddings().num_embeddings
    least, largest = (int(end) for end in ids.aminmax())
    if least < 0:
        raise ModegptError(f"{what} hold the id {least}, which is no token: give the ids alone, and a mask for padding")
    if largest >= vocabulary:
        raise ModegptError(
            f"the largest id among the {what} is {largest}, and the model has {vocabulary} tokens (0 to "
            f"{vocabulary - 1}): the tokenizer is another model's"
        )
    check_length(model, ids.shape[1])


@contextmanager
def tokens_checked(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Inside the block whatever reaches the model's embedding goes through `check_tokens`."""
    words = model.get_input_embeddings()
    hook = words.register_forward_pre_hook(lambda _module, args: check_tokens(model, args[0], what))
    try:
        yield
    finally:
        hook.remove()


def tokens_sha256(tokens: object) -> str:
    """A fingerprint of token ids, and of their mask if there is one."""
    parts = tokens.values() if isinstance(tokens, Mapping) else [tokens]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().cpu().numpy().tobytes() if isinstance(part, Tensor) else b"no tensor")
    return digest.hexdigest()


def check_length(model: PreTrainedModel, length: int, what: str = "windows take") -> None:
    """Raise ModegptError if `length` exceeds the `max_position_embeddings` of a model with learned positions (an OPT).

    A model with other positions runs, but worse than it could: that is a ModegptWarning.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return
    if _learned_positions(model, limit):
        raise ModegptError(
            f"{what} {length} tokens, and this model has learnt {limit} positions (max_position_embeddings): use less"
        )
    warnings.warn(f"{what} {length} tokens, and this model was made for {limit} positions", ModegptWarning, 1)


def _learned_positions(model: PreTrainedModel, limit: int) -> bool:
    """Whether the model has a table of positions; some, such as OPT's, have a few rows more."""
    words = model.get_input_embeddings()
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module is not words)
    return any(limit <= table.num_embeddings <= limit + 2 for table in tables)
