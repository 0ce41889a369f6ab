"""Errors that the caller can fix."""

import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_LONGEST = 499  # characters of a message
# Characters of another library's message that are passed on. They may quote the user's whole data.
_LONGEST_REASON = 200


class UserError(ValueError):
    """A user's mistake, described in one sentence that names the value and the remedy.

    The command line prints only this sentence and exits with status 2. A sentence that quotes a
    file or another library may be of any length: the middle of a long one is left out, and line
    breaks become spaces.
    """

    def __init__(self, message: object = ""):
        super().__init__(brief(str(message), _LONGEST))


def brief(text: str, longest: int) -> str:
    """Returns a text in one line, with the middle left out if it is longer than `longest`."""
    # Cut before the line breaks go, because a damaged file may be quoted in full.
    if len(text) > 4 * longest:
        text = text[: 2 * longest] + text[-2 * longest :]
    line = re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]\s*", " ", text).strip()
    if len(line) <= longest:
        return line
    head = (longest - 5) * 2 // 3
    return f"{line[:head].rstrip()} ... {line[head + 5 - longest :].lstrip()}"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Returns the first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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


@contextmanager
def about(option: str, value: Any) -> Iterator[None]:
    """Begins the message of a `UserError` with the option whose value the block uses.

    Args:
      option: a parameter of the Python interface, which commands show as their option.
      value: its value.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{option}={short(value)}: {error}") from error


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


def check_flag(name: str, value: Any) -> None:
    """Checks that `value` is true or false: the text "no" would count as true.

    Raises:
      UserError: it is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} is {short(value)}; it must be True or False")


def check_name(name: str, value: Any) -> None:
    """Checks that `value` is None or the name of something: text that is not empty, or a path.

    Raises:
      UserError: it is not.
    """
    if value is None or (isinstance(value, str | os.PathLike) and os.fspath(value)):
        return
    raise UserError(f"{name} is {short(value)}; give a name or a path, or leave it out")


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
    raise UserError(f"{name} is {short(value)}; it must be a whole number, {allowed}")


class _Short(reprlib.Repr):
    """Formats values of any size and kind in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3

    def repr_int(self, value: int, _level: int) -> str:
        # Python refuses to format integers of more than 4300 digits.
        return str(value) if abs(value) < 10**self.maxlong else "(a number of many digits)"


_SHORT = _Short()
_LONGEST_VALUE = 120


def short(value: Any) -> str:
    """Formats a value for a message: in one line, with the middle of a long one left out."""
    try:
        line = " ".join(_SHORT.repr(value).split())
        return line if len(line) <= _LONGEST_VALUE else f"{line[: _LONGEST_VALUE - 4]} ..."
    except Exception:  # the `__repr__` of another library's object
        return f"an object of the class {type(value).__name__}"
