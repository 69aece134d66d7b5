"""What every command prints to, and how one ends: an error a user can mend is one line."""

import sys
from collections.abc import Callable
from typing import TypeVar

import typer
from rich.console import Console

from modegpt.errors import ModegptError

Number = TypeVar("Number", int, float)

# Text of the user's is printed as it is: no markup, no emoji codes.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def run(program: typer.Typer, arguments: list[str]) -> None:
    """Run a program and exit; an error a user can mend is one line on stderr and exit code 2."""
    advice = ""
    try:
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


def run_alone(command: Callable[..., None]) -> None:
    """Run one function as a program of its own, as `python -m` does with the longer experiments."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(command)
    run(program, sys.argv[1:])


def numbers(option: str, words: str, example: str, kind: type[Number] = float) -> list[Number]:
    """The numbers of an option such as "0.1,0.3". Raises ModegptError, with the example, for anything else."""
    try:
        return [kind(word) for word in words.split(",")]
    except ValueError as error:
        raise ModegptError(f"{option} is a list such as {example}, got '{words}'") from error


def _fail(message: str) -> int:
    print(f"modegpt: {' '.join(message.split())}", file=sys.stderr)
    return 2
