"""How a check speaks: one sentence, no traceback."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor


class NotYet(AssertionError):
    """An answer that is not right yet; the message names the likely mistake and what to look at."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the sentence alone (IPython asks for this)."""
        return [f"Not yet: {self}"]


def expect(condition: Any, message: str) -> None:
    """Raise NotYet(message) unless the condition holds."""
    if not condition:
        raise NotYet(message)


def answer(function: Callable, *arguments: Any) -> Any:
    """Call the reader's function; what it raises becomes a NotYet, as does an unfinished function."""
    try:
        return function(*arguments)
    except NotImplementedError as error:
        raise NotYet(f"{function.__name__} has no solution yet") from error
    except Exception as error:
        raise NotYet(f"{function.__name__} stops with {type(error).__name__}: {error}") from error


def expect_tensor(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Raise NotYet unless `value` is a finite tensor of that shape."""
    expect(isinstance(value, Tensor), f"{what} should be a tensor, it is a {type(value).__name__}")
    expect(tuple(value.shape) == tuple(shape), f"{what} should have shape {tuple(shape)}, it has {tuple(value.shape)}")
    expect(torch.isfinite(value.double()).all(), f"{what} holds NaN or inf")


def close(value: Tensor, target: Tensor, tolerance: float = 1e-8) -> bool:
    """Whether two tensors agree, relative to the target's largest entry."""
    return bool((value - target).abs().max() <= tolerance * target.abs().max().clamp(min=1e-30))


def number(value: Any, what: str) -> float:
    """A finite number as a float, also from a tensor of one element; otherwise NotYet."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    expect(isinstance(value, Real), f"{what} should be a number, it is a {type(value).__name__}")
    expect(math.isfinite(value), f"{what} is {value}")
    return float(value)


def near(value: float, target: float, tolerance: float = 1e-5) -> bool:
    """Whether two numbers agree, relative to the second; by default as well as float32 will do."""
    return abs(value - target) <= tolerance * max(abs(target), 1e-12)


def passed(what: str) -> None:
    """Say that the answer is right."""
    print(f"Right: {what}")
