"""The keywords of JSON schemas, and what can be read from them alone."""

from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from emsjax.errors import UserError, short
from emsjax.requests.json_range import Bound

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# What restricts a value, by the type it belongs to.
OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
}
# What says all about a value.
ALONE = ("enum", "const", "anyOf", "oneOf", "allOf", "$ref")
# What describes a value, or holds parts of the schema.
NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
    }
)
# Digits after the point of a bound.
_MOST_DIGITS = 20
KNOWN = NOTES.union(("type",), ALONE, *OF_TYPE.values())


def types_of(schema: dict[str, Any]) -> list[str]:
    """Returns the types that a part of a schema names.

    Raises:
      UserError: one of them is not known.
    """
    given = schema.get("type", [])
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in OF_TYPE:
            raise UserError(
                f"type={short(kind)} in a JSON schema is not known; give one of "
                f"{', '.join(OF_TYPE)}"
            )
    return kinds


def kinds_of(value: Any) -> set[str]:
    """Returns the types that a value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {dict: "object", list: "array", str: "string", float: "number", type(None): "null"}
    return {names[type(value)]}


def bounds(schema: dict[str, Any], what: str) -> tuple[int, int | None]:
    """Returns the least and the most of lengths or items.

    Raises:
      UserError: they are no such numbers.
    """
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for name, value in ((f"min{what}", least), (f"max{what}", most)):
        if value is not None and (type(value) is not int or not 0 <= value < 100_000):
            raise UserError(
                f"{name}={short(value)} in a JSON schema must be a whole number below 100000"
            )
    if most is not None and least > most:
        raise UserError(f"min{what} is more than max{what} in the JSON schema; change one of them")
    return least, most


def integer_range(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """Returns the least and the most of an integer; None for no bound.

    Raises:
      UserError: a bound is no whole number.
    """
    lows, highs = [], []
    for name in _BOUNDS:
        if name not in schema:
            continue
        value = schema[name]
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**18:
            raise UserError(
                f"{name}={short(value)} of an integer in a JSON schema must be a whole number "
                "below 10**18"
            )
        inside = 1 if name.startswith("exclusive") else 0
        if name.endswith("inimum"):
            lows.append(value + inside)
        else:
            highs.append(value - inside)
    return max(lows, default=None), min(highs, default=None)


def number_range(schema: dict[str, Any]) -> tuple[Bound | None, Bound | None]:
    """Returns the ends of the range of a number; None for no bound.

    Raises:
      UserError: a bound is no number, or has too many digits.
    """
    lows: list[Bound] = []
    highs: list[Bound] = []
    for name in _BOUNDS:
        if name not in schema:
            continue
        value = schema[name]
        known = type(value) in (int, float) and abs(value) < 10**18
        given = Decimal(repr(value)) if known else Decimal(0)
        if not known or given != round(given, _MOST_DIGITS):
            raise UserError(
                f"{name}={short(value)} of a number in a JSON schema must be a number below 10**18 "
                f"with at most {_MOST_DIGITS} digits after the point"
            )
        bound = Bound(given, name.startswith("exclusive"))
        (lows if name.endswith("inimum") else highs).append(bound)
    # Of equal bounds the exclusive one counts.
    low = max(lows, default=None)
    high = min(highs, key=lambda bound: (bound.value, not bound.open), default=None)
    return low, high


def at(root: Any, name: Any) -> Any:
    """Returns the part of a schema that a reference leads to.

    Raises:
      UserError: there is nothing.
    """
    if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
        raise UserError(f"$ref={short(name)} in the JSON schema must begin with #/")
    found = root
    for token in name[2:].split("/") if name != "#" else ():
        # A JSON pointer (RFC 6901) in a URI.
        part = unquote(token).replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or part not in found:
            raise UserError(f"the JSON schema has nothing at {short(name)}; add it there")
        found = found[part]
    return found


def listed(name: str, value: Any) -> list[Any]:
    """Returns the value of a keyword that must be a list.

    Raises:
      UserError: it is none.
    """
    if not isinstance(value, list):
        raise UserError(f"{name}={short(value)} in the JSON schema must be a list")
    return value
