"""How every command of ours begins and ends.

Exit status: 0 all is well; 1 some of the input was bad; 2 a mistake in the call, told in one
sentence; 130 interrupted; 141 the reader of standard output left.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from emsjax.cli.interrupts import comes_from_interrupt, no_interrupt_is_lost
from emsjax.errors import UserError

_INTERRUPTED = 130


def new_app() -> typer.Typer:
    """An empty command line."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def parse(app: typer.Typer, module: str, arguments: Sequence[str] | None) -> Any:
    """What the command returns, or the exit status where only `--help` was asked for.

    Args:
      app: with one command.
      module: its name, such as `generate`.
      arguments: what follows the program's name; from the process where left out.

    Raises:
      UserError: the arguments do not fit.
    """
    started_as_module = Path(sys.argv[0]).name in (f"{module}.py", "__main__.py")
    name = f"python -m emsjax.{module}" if started_as_module else "emsjax"
    program = typer.main.get_command(app)
    try:
        # Not `main`: typer's own turns an interrupt into a number, and loses what it says.
        words = sys.argv[1:] if arguments is None else arguments
        with program.make_context(name, list(words)) as context:
            return program.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except Exception as error:
        # typer's usage errors: their class has lived in two packages, their method has not moved.
        if not hasattr(error, "format_message"):
            raise
        raise UserError(f"{error.format_message().rstrip('.')}; see --help.") from error


def run(body: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status; the module's docstring lists them."""
    _quieten()
    with no_interrupt_is_lost():
        try:
            return body() or 0
        except KeyboardInterrupt as stop:
            return _fail(f"interrupted: {stop}" if str(stop) else "interrupted", _INTERRUPTED)
        except BrokenPipeError:
            return 141  # what a shell reports for a program ended by a closed pipe
        except Exception as error:
            if comes_from_interrupt(error):
                return _fail("interrupted", _INTERRUPTED)
            if isinstance(error, UserError):
                return _fail(f"error: {error}", 2)
            raise


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def _quieten() -> None:
    """Keep libraries' asides off standard error; what they say of a TPU or GPU stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("absl").setLevel(logging.ERROR)
