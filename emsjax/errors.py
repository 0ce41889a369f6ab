"""Errors that are the caller's to mend."""

from typing import Any


class UserError(ValueError):
    """A user's mistake, told in one sentence that names the value and the remedy.

    The command line prints the sentence alone and exits with status 2.
    """


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuses what is not a whole number between `low` and `high`.

    Raises:
      UserError: says what is allowed.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= low and (high is None or value <= high):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise UserError(f"{name} is {value!r}; it must be a whole number, {allowed}")
