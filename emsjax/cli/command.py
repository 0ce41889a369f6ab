"""Parsing and running of every command, and its exit status.

Exit statuses:
  0: success.
  1: part of the input was bad.
  2: the call was wrong; one sentence on standard error says how.
  130: interrupted.
  141: the reader of standard output closed the pipe.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from emsjax.cli.interrupts import no_interrupt_is_lost
from emsjax.cli.option_names import name_options
from emsjax.errors import UserError, comes_from_interrupt

_INTERRUPTED = 130


def new_app() -> typer.Typer:
    """Makes a command line without commands."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def parse(app: typer.Typer, module: str, arguments: Sequence[str] | None) -> Any:
    """Parses the arguments and calls the command.

    Args:
      app: a command line with one command.
      module: the module's name after `emsjax.`, such as `generate`.
      arguments: the command-line arguments without the program's name; `sys.argv[1:]` by default.

    Returns:
      The command's result, or the exit status if an option such as `--help` ended it.

    Raises:
      UserError: the arguments are invalid.
    """
    program = typer.main.get_command(app)
    try:
        # Not typer's `main`, which turns an interrupt into an exit status and drops its message.
        words = sys.argv[1:] if arguments is None else arguments
        with program.make_context(_called(module), list(words)) as context:
            return program.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except Exception as error:
        # Usage errors are recognised by a method, because their class comes from another package in
        # some versions of typer.
        if not hasattr(error, "format_message"):
            raise
        raise UserError(f"{error.format_message().rstrip('.')}; see --help.") from error


def program_name() -> str:
    """Returns how the user started emsjax's one program, `python -m emsjax` or `emsjax`."""
    return "python -m emsjax" if Path(sys.argv[0]).name == "__main__.py" else "emsjax"


def _called(module: str) -> str:
    """Returns how the user called a command: on its own, or as a part of emsjax's one program."""
    path = Path(sys.argv[0])
    alone = path.name == f"{module}.py" or (path.name, path.parent.name) == ("__main__.py", module)
    return f"python -m emsjax.{module}" if alone else f"{program_name()} {module}"


def command_line(module: str) -> str:
    """Returns the command that the user gave, for records."""
    called = _called(module)
    words = sys.argv[1:] if called.endswith(f".{module}") else sys.argv[2:]
    return f"{called} {shlex.join(words)}"


def run(
    body: Callable[[], int | None],
    app: typer.Typer | None = None,
    parameters: Mapping[str, str] | None = None,
) -> int:
    """Runs a command and returns its exit status; the module's docstring lists the values.

    Args:
      body: does the work.
      app: the command line with the command; errors name its options, not the parameters of the
        Python interface that they set.
      parameters: the options of parameters that have another name, such as `max_batch_size`.
    """
    quieten()
    with no_interrupt_is_lost():
        try:
            return body() or 0
        except KeyboardInterrupt as stop:
            return _fail(f"interrupted: {stop}" if str(stop) else "interrupted", _INTERRUPTED)
        except BrokenPipeError:
            return 141  # what a shell reports when SIGPIPE ends a program
        except Exception as error:
            if comes_from_interrupt(error):
                return _fail("interrupted", _INTERRUPTED)
            if isinstance(error, UserError):
                options = _options(app) | dict(parameters or {})
                return _fail(f"error: {name_options(str(error), options)}", 2)
            raise


def _options(app: typer.Typer | None) -> dict[str, str]:
    """Returns the option that sets each parameter of a command."""
    if app is None:
        return {}
    every = typer.main.get_command(app).params
    return {str(each.name): each.opts[-1] for each in every if each.opts[-1].startswith("--")}


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def quieten() -> None:
    """Keeps routine library messages off standard error, but not those about a TPU or GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("absl").setLevel(logging.ERROR)
