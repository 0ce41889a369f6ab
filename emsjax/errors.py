"""Errors that the caller can fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Characters of another library's message that are passed on. They may quote the user's whole data.
_LONGEST_REASON = 200


class UserError(ValueError):
    """A user's mistake, described in one sentence that names the value and the remedy.

    The command line prints only this sentence and exits with status 2.
    """


@contextmanager
def foreign(problem: str, remedy: str) -> Iterator[None]:
    """Turns an error that another library raises on a user's data into a `UserError`.

    Libraries raise exceptions of any class for such data, so that no list of classes is complete.
    An interrupt stays an interrupt, even if the library raises another exception because of it.

    Args:
      problem: what cannot be done, without a full stop.
      remedy: what the user can do, with or without a full stop.

    Raises:
      UserError: the block raised an exception; a `UserError` of the block is passed on as it is.
      KeyboardInterrupt: the block was interrupted.
      MemoryError: the machine ran out of memory.
    """
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if comes_from_interrupt(error):
            raise KeyboardInterrupt from error
        # A panic of a library in Rust, such as tokenizers, derives from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{problem} ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """Returns the class and the message of an exception in one short line."""
    kind = type(error).__name__
    try:
        message = str(error)
    except Exception:
        message = ""
    # The message may quote control characters of a damaged file.
    shown = "".join(c if c.isprintable() else " " for c in message[: 4 * _LONGEST_REASON])
    line = " ".join(shown.split())
    if len(line) > _LONGEST_REASON:
        line = f"{line[:_LONGEST_REASON]}…"
    return f"{kind}: {line}" if line else kind


def comes_from_interrupt(error: BaseException) -> bool:
    """Whether `error` was raised because of a KeyboardInterrupt, as some libraries do."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Checks that `value` is a whole number between `low` and `high`, inclusive.

    Args:
      name: the name of the value in the message.
      value: the value to check.
      low: the smallest allowed value.
      high: the largest allowed value; None for no limit.

    Raises:
      UserError: the value is not allowed; the message says which values are.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= low and (high is None or value <= high):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise UserError(f"{name} is {value!r}; it must be a whole number, {allowed}")
