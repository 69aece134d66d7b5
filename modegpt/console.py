"""What every command prints to, how one ends, and how it was typed: an error a user can mend is one line."""

import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from modegpt.errors import ModegptError, ModegptWarning

# Text of the user's is printed as it is: no markup, no emoji codes.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def run(program: typer.Typer, arguments: list[str]) -> None:
    """Run a program and exit; an error a user can mend is one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # an ASCII terminal shows ? for ±, and no work is lost
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    advice = ""
    try:
        _check_surroundings(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("default", ModegptWarning)  # once, however often it is checked
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            code = program(args=arguments, standalone_mode=False)
    except ModegptError as error:
        code = _fail(str(error))
    except (KeyboardInterrupt, typer.Abort) as stop:
        code, advice = 130, str(stop)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer says of a wrong command line
            raise
        code = _fail(f"{error.format_message()} (see --help)")
    if code == 130:  # typer's code for Ctrl-C
        print(f"modegpt: stopped; {advice or 'nothing half-written was left behind'}", file=sys.stderr)
    sys.exit(code or 0)


def show_table(table: Table, width: int) -> None:
    """Print a table; into a file or a pipe with at least `width` columns, so that nothing is cut off."""
    Console(highlight=False, markup=False, width=None if out.is_terminal else max(out.width, width)).print(table)


def command_line(places: bool = True) -> str:
    """The command line as it was typed, for a results file: whoever types it again gets the same.

    Without `places`, for what travels: files and folders by their names, not by where they lie, also after a "=".
    A program other than `modegpt` that calls the same code is named.
    """
    program = Path(sys.argv[0])
    own = program.suffix == ".py" and program.name != "__main__.py"
    words = sys.argv[1:] if places else map(_without_place, sys.argv[1:])
    return shlex.join([*(("python", program.name) if own else ("modegpt",)), *words])


def _without_place(word: str) -> str:
    option, equals, value = ("", "", word) if _is_place(word) else word.partition("=")
    return option + equals + Path(value).name if _is_place(value) else word


def _is_place(word: str) -> bool:
    return word.startswith(("/", ".", "~")) or os.path.exists(word)


def _show_warning(others: Callable[..., None], message: Warning, kind: type[Warning], *place: Any) -> None:
    if issubclass(kind, ModegptWarning):
        err.print(f"warning: {message}", style="yellow")
    else:
        others(message, kind, *place)


def _check_surroundings(arguments: list[str]) -> None:
    try:
        " ".join(arguments).encode()
    except UnicodeEncodeError as error:
        raise ModegptError("the command line is not UTF-8, see the locale of this terminal") from error
    try:
        os.getcwd()
    except OSError as error:
        raise ModegptError("the folder that this runs in is gone: go to one that exists") from error


def _fail(message: str) -> int:
    print(f"modegpt: {' '.join(message.split())}", file=sys.stderr)
    return 2
