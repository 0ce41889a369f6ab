"""Turns whatever another library raises for a damaged file into a `UserError`."""

from collections.abc import Iterator
from contextlib import contextmanager

from emsjax.errors import UserError


@contextmanager
def foreign(what: str, remedy: str) -> Iterator[None]:
    """Runs code of another library on a user's file.

    Args:
      what: what is wrong if it raises anything, e.g. "x is rejected by transformers".
      remedy: what to do then.

    Raises:
      UserError: the code raised any exception but an interrupt or an exit. The tokenizers package
        raises exceptions that are no `Exception` for its own faults.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} ({reason}); {remedy}.") from error
