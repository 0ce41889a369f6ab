"""Errors that the caller can fix."""

from typing import Any


class UserError(ValueError):
    """A user's mistake, described in one sentence that names the value and the remedy.

    The command line prints only this sentence and exits with status 2.
    """


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
