"""Errors that the caller can fix."""

import re
import reprlib
from typing import Any

_LONGEST = 499  # characters of a message


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
_LONGEST = 120


def short(value: Any) -> str:
    """Formats a value for a message: in one line, with the middle of a long one left out."""
    try:
        line = " ".join(_SHORT.repr(value).split())
        return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."
    except Exception:  # the `__repr__` of another library's object
        return f"an object of the class {type(value).__name__}"
