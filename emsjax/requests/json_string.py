"""Strings of JSON schemas as regular expressions."""

import re
from collections.abc import Iterator
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.json_keywords import OF_TYPE, bounds

_CHARACTER = r'(?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\/bfnrt])'
ANY_STRING = f'"{_CHARACTER}*"'
_DATE = (
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|"
    "30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*@[a-z0-9]+(?:[.-][a-z0-9]+)*\.[a-z]{2,}",
}
# Classes that have more letters in Rust than in JavaScript, whose expressions schemas have.
_CLASSES = {"d": "[0-9]", "w": "[A-Za-z0-9_]", "D": "[^0-9]", "W": "[^A-Za-z0-9_]"}


def string(schema: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the expression of a string in JSON, and the pattern in it if there is one.

    Raises:
      UserError: it is restricted in a way that has no expression.
    """
    least, most = bounds(schema, "Length")
    pattern, form = schema.get("pattern"), schema.get("format")
    given = [name for name in OF_TYPE["string"] if name in schema]
    if len(given) > 1 and (pattern is not None or form is not None):
        raise UserError(
            f"{given[0]} and {given[1]} in one part of a JSON schema are not supported; leave "
            "one of them out"
        )
    if pattern is not None:
        whole = _whole(pattern)
        return f'"(?:{whole})"', [whole]
    if form is not None:
        if form not in _FORMATS:
            raise UserError(
                f"format={short(form)} in a JSON schema is not supported; leave it out, or "
                f"give one of {', '.join(_FORMATS)}"
            )
        return f'"(?:{_FORMATS[form]})"', []
    return f'"{_CHARACTER}{{{least},{"" if most is None else most}}}"', []


def _whole(pattern: Any) -> str:
    """Returns a pattern as an expression of the whole string, as which it allows no more."""
    if not isinstance(pattern, str):
        raise UserError(f"pattern={short(pattern)} in the JSON schema must be text")
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern):
        pattern = pattern[:-1]
    return "".join(_pattern_parts(pattern))


def _pattern_parts(pattern: str) -> Iterator[str]:
    """Yields a pattern in pieces, with the classes of JavaScript."""
    for piece in re.findall(r"\\.|[^\\]+|\\", pattern, re.DOTALL):
        yield _CLASSES.get(piece[1:], piece) if piece[0] == "\\" else piece
