"""A student's functions in a process of their own: arguments go in, plain values come out, the check stays here."""

import contextlib
import inspect
import io
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from modegpt.course.check.verdict import Work, line_of
from modegpt.errors import ModegptError

CONTEXT = multiprocessing.get_context("forkserver")
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.I)
LARGEST = 2**28  # bytes of one answer
KNOWN = {error.__name__: error for error in (NotImplementedError, ValueError, ModegptError)}  # checks tell these apart
DIED = "the kernel died (out of memory?)"


class KernelDied(Exception):
    """The process ended, or was ended because it took too long."""


class Answers:
    """The cells of one hand-in, run in a process that has an empty folder, no terminal and no way to the checks.

    A cell that ends the process is left out when it is started again, so it costs no more than what it defines.

    Parameters
    ----------
    cells: what to run, in this order
    seconds: how long one cell, or one call of a function, may take
    """

    def __init__(self, cells: Iterable[str], seconds: float):
        self.cells, self.seconds = list(cells), seconds
        self.errors: dict[str, str] = {}  # by cell: what kept it from running to its end
        self.folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Run the cells, unless they have been and the process is alive."""
        while self.folder is None:
            self._launch()
            for cell in self.cells:
                if self.errors.get(cell, "").startswith(("stopped", DIED)):
                    continue
                try:
                    self.errors[cell] = self._ask("run", cell)[0]
                except KernelDied as death:
                    self.errors[cell] = str(death)
                    break

    def function(self, name: str) -> Callable:
        """The function of that name; calling it calls the student's. Raises NameError if no cell defines it."""
        self.start()
        parameters = self._ask("signature", name)[0]
        if parameters is None:
            raise NameError(f"name '{name}' is not defined")

        def call(*arguments: Any) -> Any:
            self.start()
            value, changed, work = self._ask("call", name, arguments)
            _put_back(arguments, changed)
            call.work = Work(*work)
            return value

        call.__name__ = name
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        call.__signature__ = inspect.Signature([inspect.Parameter(parameter, kind) for parameter in parameters])
        return call

    def stop(self) -> None:
        """End the process and all that it started, and remove its folder."""
        if self.folder is not None:
            self.process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what it started, too
            self.process.join()
            self.connection.close()
            self.folder.cleanup()
            self.folder = None

    def _launch(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, self.folder.name))
        self.process.start()
        theirs.close()

    def _ask(self, *request: Any) -> tuple:
        """What the process answers; a function among the arguments is called here when it is called there."""
        functions = {}
        if request[0] == "call":
            functions = {place: value for place, value in enumerate(request[2]) if callable(value)}
            plain = tuple(None if place in functions else value for place, value in enumerate(request[2]))
            request = (*request[:2], plain, tuple(functions))
        try:
            _send(self.connection, *request)
            while True:
                if not self.connection.poll(self.seconds):
                    raise KernelDied(f"stopped after {self.seconds:g} s")
                kind, *answer = _receive(self.connection)
                if kind != "back":
                    break
                place, arguments = answer
                _send(self.connection, functions[place](*arguments))
        except BaseException as error:  # what it still says would answer the next question
            self.stop()
            if isinstance(error, EOFError | OSError) and not isinstance(error, TimeoutError):  # that is the check's
                raise KernelDied(DIED) from error
            raise
        if kind == "error":
            name, message, line = answer
            known = KNOWN.get(name, type(name, (Exception,), {}))
            raise known(message if known is NotImplementedError else message + line)
        return tuple(answer)


def preload(modules: Iterable[str]) -> None:
    """Import these once, for all processes to come: each is a copy of one that has, and imports this program again."""
    main = getattr(sys.modules["__main__"].__spec__, "name", "__main__")
    CONTEXT.set_forkserver_preload([main, "IPython.core.interactiveshell", __name__, *modules])


def _serve(connection: Connection, folder: str) -> None:
    """The other end, until the connection is closed."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    os.setsid()  # no terminal
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.chdir(folder)
    sys.argv = [""]
    for name in filter(SECRET.search, list(os.environ)):
        del os.environ[name]
    os.environ |= {"IPYTHONDIR": folder, "MPLBACKEND": "Agg"}
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    while True:
        kind, *request = _receive(connection)
        if kind == "run":
            result = shell.run_cell(request[0])
            error = result.error_before_exec or result.error_in_exec
            _send(connection, "done", f"{type(error).__name__}: {error}" if error else "")
            continue
        function = shell.user_ns.get(request[0])
        if kind == "signature":
            try:
                names = list(inspect.signature(function).parameters)
            except (TypeError, ValueError):
                names = [] if callable(function) else None
            _send(connection, "done", names)
            continue
        try:
            _send(connection, "done", *_called(function, *request[1:], connection))
        except Exception as error:
            _send(connection, "error", type(error).__name__, str(error), line_of(function, error))


def _called(function: Callable, arguments: tuple, functions: tuple[int, ...], connection: Connection) -> tuple:
    def back(place: int) -> Callable:
        def call(*arguments: Any) -> Any:
            _send(connection, "back", place, _plain(arguments))
            return _receive(connection)[0]

        return call

    given = [back(place) if place in functions else value for place, value in enumerate(arguments)]
    with Work() as work:
        value = function(*given)
    return _plain(value), _plain(arguments), (work.largest, dict(work.calls))


def _plain(value: Any) -> Any:
    """The value, if it is made of tensors, numbers and texts only. Raises TypeError for objects of other kinds."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if value is None or type(value) in (bool, int, float, complex, str):
        return value
    raise TypeError(f"returns a {type(value).__name__}, where tensors and numbers can be checked")


def _put_back(mine: Any, theirs: Any) -> None:
    """What the function changed in place changes here too: a check may look."""
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.shape == theirs.shape:
        if not torch.equal(mine, theirs):
            mine.copy_(theirs)
    elif isinstance(mine, tuple | list) and isinstance(theirs, tuple | list):
        for one, other in zip(mine, theirs, strict=False):
            _put_back(one, other)


def _send(connection: Connection, *message: Any) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    connection.send_bytes(buffer.getvalue())


def _receive(connection: Connection) -> tuple:
    """Plain values: unlike a pickle, these cannot hold code. Raises EOFError at the end, UnpicklingError for others."""
    return torch.load(io.BytesIO(connection.recv_bytes(LARGEST)), weights_only=True)
