"""How a check speaks: one sentence, no traceback."""

import inspect
import math
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class NotYet(AssertionError):
    """An answer that is not right yet; the message names the likely mistake and what to look at."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the sentence alone (IPython asks for this)."""
        return [f"Not yet: {self}"]


def expect(condition: Any, message: str) -> None:
    """Raise NotYet(message) unless the condition holds."""
    if not condition:
        raise NotYet(message)


SECONDS = 20  # for one call; the problems are tiny, a right answer takes hundredths of one


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """TimeoutError in a loop that does not end, where there are signals: not on Windows, only in the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no result after {seconds:g} s, does every loop end?")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def line_of(function: Callable, error: Exception) -> str:
    """Where in the reader's own cell an error came up, as " (at `...`)"; empty where there is no source."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (at `{lines[-1]}`)" if lines and lines[-1] else ""


def answer(function: Callable, *arguments: Any) -> Any:
    """Call the reader's function; what it raises becomes a NotYet, with the line, as does an unfinished function.

    Raises:
        NotYet: also where the function returns nothing, does not end, or changes a tensor it was given: in a lesson
            that tensor is needed below.
    """
    name = function.__name__
    given = [argument.clone() if isinstance(argument, Tensor) else None for argument in arguments]
    try:
        with _limited(SECONDS):
            result = function(*arguments)
    except NotImplementedError as error:
        raise NotYet(f"{name} has no solution yet") from error
    except Exception as error:
        raise NotYet(f"{name} stops with {type(error).__name__}: {error}{line_of(function, error)}") from error
    expect(result is not None, f"{name} returns nothing: its last line should be a return")
    for place, (before, now) in enumerate(zip(given, arguments, strict=True)):
        if before is not None and not torch.equal(before, now):
            changed = list(inspect.signature(function).parameters)[place]
            raise NotYet(
                f"{name} changes its argument {changed} in place, and the caller may need it: "
                f"begin with {changed} = {changed}.clone(), or write {changed} + ... and not {changed} += ..."
            )
    return result


class Work(TorchDispatchMode):
    """What torch is made to do: the numbers in the largest tensor made, and how often each operation is called."""

    def __init__(self, largest: int = 0, calls: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.largest, self.calls = largest, Counter(calls)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.largest = max([self.largest, *(t.numel() for t in made if isinstance(t, Tensor))])
        self.calls[func.overloadpacket.__name__] += 1
        return result


def watched(function: Callable, *arguments: Any) -> tuple[Any, Work]:
    """`answer`, and the work it took; a function that runs elsewhere says so itself, as its `work`."""
    with Work() as work:
        result = answer(function, *arguments)
    return result, getattr(function, "work", work)


def expect_tensor(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Raise NotYet unless `value` is a finite tensor of that shape."""
    expect(isinstance(value, Tensor), f"{what} should be a tensor, it is a {type(value).__name__}")
    expect(tuple(value.shape) == tuple(shape), f"{what} should have shape {tuple(shape)}, it has {tuple(value.shape)}")
    expect(torch.isfinite(value.double()).all(), f"{what} holds NaN or inf")


def expect_close(value: Tensor, target: Tensor, message: str, tolerance: float = 1e-8) -> None:
    """Raise NotYet(message) unless the two agree; where digits are all that is missing, say so, and the dtype."""
    if close(value.double(), target, tolerance):
        return
    if close(value.double(), target, 1e-4):
        dtype = f"it is {value.dtype}" if value.dtype != target.dtype else "something on the way is float32"
        message = f"right but for the last digits: {dtype}, the arguments are {target.dtype}; stay in their dtype"
    raise NotYet(message)


def close(value: Tensor, target: Tensor, tolerance: float = 1e-8) -> bool:
    """Whether two tensors agree, relative to the target's largest entry."""
    return bool((value - target).abs().max() <= tolerance * target.abs().max().clamp(min=1e-30))


def number(value: Any, what: str) -> float:
    """A finite number as a float, also from a tensor of one element; otherwise NotYet."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, Tensor):
        raise NotYet(f"{what} should be one number, it is a tensor of shape {tuple(value.shape)}")
    expect(isinstance(value, Real), f"{what} should be one number, it is a {type(value).__name__}")
    expect(math.isfinite(value), f"{what} is {value}")
    return float(value)


def near(value: float, target: float, tolerance: float = 1e-5) -> bool:
    """Whether two numbers agree, relative to the second; by default as well as float32 will do."""
    return abs(value - target) <= tolerance * max(abs(target), 1e-12)


def passed(what: str) -> None:
    """Say that the answer is right."""
    print(f"Right: {what}")
