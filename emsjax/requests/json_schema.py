"""JSON schemas as regular expressions, all of whose texts are valid.

An expression may allow less than its schema does: objects have no further properties, and those
they have are in the order of the schema. What it could not enforce is refused by name.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from emsjax.errors import UserError, short
from emsjax.requests.json_range import integers

# What restricts a value, by the type it belongs to.
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": (),
    "boolean": (),
    "null": (),
}
# What says all about a value.
_ALONE = ("enum", "const", "anyOf", "oneOf", "allOf", "$ref")
# What describes a value, or holds parts of the schema.
_NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
    }
)
_KNOWN = _NOTES.union(("type",), _ALONE, *_OF_TYPE.values())
_CHARACTER = r'(?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\/bfnrt])'
_STRING = f'"{_CHARACTER}*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
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
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
# Classes that have more letters in Rust than in JavaScript, whose expressions schemas have.
_CLASSES = {"d": "[0-9]", "w": "[A-Za-z0-9_]", "D": "[^0-9]", "W": "[^A-Za-z0-9_]"}
# The deepest nesting of a schema, and the most characters of an expression.
_DEEPEST, _LONGEST = 40, 300_000


def escape(text: str) -> str:
    """Returns a regular expression that matches a text."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def schema_regex(text: str, white: str) -> tuple[str, list[str]]:
    """Returns a regular expression of a schema, and the patterns of strings in it.

    The patterns must not allow what ends a string or is no JSON, which is still to be checked.

    Args:
      text: the schema, in JSON.
      white: the regular expression of white space.

    Raises:
      UserError: the schema has no expression, because it is none, is not supported, or has no end.
    """
    found = _Schema(json.loads(text), f"(?:{white})")
    return found.regex, found.patterns


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class _Schema:
    """A schema while its expression is made.

    Attributes:
      regex: the expression.
      patterns: the patterns in it.
    """

    def __init__(self, root: Any, white: str):
        self._root, self._white = root, white
        self._refs: list[str] = []
        self._depth = 0
        self.patterns: list[str] = []
        self.regex = self._of(root)

    def _of(self, schema: Any) -> str:
        """Returns the expression of a part of the schema."""
        if not isinstance(schema, dict):
            raise UserError(
                f"a part of the JSON schema is {short(schema)}; it must be an object with a type"
            )
        for name in schema:
            if name not in _KNOWN:
                raise UserError(
                    f"{short(name)} in a JSON schema is not supported; leave it out and check the "
                    "output for it"
                )
        if self._depth == _DEEPEST:
            raise UserError(
                f"the JSON schema is nested more than {_DEEPEST} deep; write less of it"
            )
        self._depth += 1
        found = self._alone(schema) if schema.keys() & set(_ALONE) else self._typed(schema)
        self._depth -= 1
        if len(found) > _LONGEST:
            raise UserError(
                "the JSON schema is too large for an automaton; have fewer optional properties "
                "and fewer levels"
            )
        return f"(?:{found})"

    def _alone(self, schema: dict[str, Any]) -> str:
        (name, *others) = [each for each in schema if each not in _NOTES and each != "type"]
        if others:
            raise UserError(
                f"{name} and {others[0]} in one part of a JSON schema are not supported; leave one "
                "of them out"
            )
        value = schema[name]
        if name == "$ref":
            return self._reference(value)
        if name in ("const", "enum"):
            return self._values([value] if name == "const" else _list(name, value), schema)
        parts = _list(name, value)
        if not parts or (name == "allOf" and len(parts) > 1):
            raise UserError(f"{name} of {len(parts)} parts in a JSON schema is not supported")
        return "|".join(map(self._of, parts))

    def _values(self, values: list[Any], schema: dict[str, Any]) -> str:
        kinds = _types(schema)
        fitting = [value for value in values if not kinds or _kind_of(value) & set(kinds)]
        if not fitting:
            raise UserError("enum or const in the JSON schema has no value of its type; change one")
        return "|".join(escape(_json(value)) for value in fitting)

    def _reference(self, name: Any) -> str:
        if not isinstance(name, str) or not name.startswith("#/"):
            raise UserError(f"$ref={short(name)} in the JSON schema must begin with #/")
        if name in self._refs:
            raise UserError(
                f"the JSON schema refers to itself ({short(name)}), so that its automaton would "
                "have no end; write out as many levels as you need"
            )
        found = self._root
        for token in name[2:].split("/"):
            # A JSON pointer (RFC 6901) in a URI.
            part = unquote(token).replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or part not in found:
                raise UserError(f"the JSON schema has nothing at {short(name)}; add it there")
            found = found[part]
        self._refs.append(name)
        regex = self._of(found)
        self._refs.pop()
        return regex

    def _typed(self, schema: dict[str, Any]) -> str:
        kinds = _types(schema) or [
            kind for kind, names in _OF_TYPE.items() if schema.keys() & set(names)
        ]
        if not kinds:
            raise UserError(
                "a part of the JSON schema allows any value, which has no automaton; give it a type"
            )
        known = {name for kind in kinds for name in _OF_TYPE.get(kind, ())}
        for name in schema.keys() - _NOTES - {"type"}:
            if name not in known:
                raise UserError(
                    f"{name} of type {' or '.join(kinds)} in a JSON schema is not supported; leave "
                    "it out"
                )
        makers: dict[str, Callable[[dict[str, Any]], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": _integer,
            "number": lambda _: _NUMBER,
            "boolean": lambda _: "true|false",
            "null": lambda _: "null",
        }
        return "|".join(f"(?:{makers[kind](schema)})" for kind in kinds)

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = _bounds(schema, "Length")
        pattern, form = schema.get("pattern"), schema.get("format")
        given = [name for name in _OF_TYPE["string"] if name in schema]
        if len(given) > 1 and (pattern is not None or form is not None):
            raise UserError(
                f"{given[0]} and {given[1]} in one part of a JSON schema are not supported; leave "
                "one of them out"
            )
        if pattern is not None:
            self.patterns.append(_whole(pattern))
            return f'"(?:{self.patterns[-1]})"'
        if form is not None:
            if form not in _FORMATS:
                raise UserError(
                    f"format={short(form)} in a JSON schema is not supported; leave it out, or "
                    f"give one of {', '.join(_FORMATS)}"
                )
            return f'"(?:{_FORMATS[form]})"'
        return f'"{_CHARACTER}{{{least},{"" if most is None else most}}}"'

    def _array(self, schema: dict[str, Any]) -> str:
        least, most = _bounds(schema, "Items")
        white = self._white
        if "prefixItems" in schema:
            parts = _list("prefixItems", schema["prefixItems"])
            if len(parts) < least or (most is not None and len(parts) > most):
                raise UserError(
                    f"prefixItems has {len(parts)} parts in the JSON schema, which minItems and "
                    "maxItems do not allow; change one of them"
                )
            items = f"{white},{white}".join(map(self._of, parts))
            return rf"\[{white}{items}{white}\]"
        if "items" not in schema:
            raise UserError("an array of a JSON schema allows any items; give it items with a type")
        item = self._of(schema["items"])
        if most == 0:
            return rf"\[{white}\]"
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f"{item}(?:{white},{white}{item}){more}{white}"
        return rf"\[{white}{items}\]" if least else rf"\[{white}(?:{items})?\]"

    def _object(self, schema: dict[str, Any]) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise UserError(f"properties={short(properties)} in the JSON schema must be an object")
        for each in _list("required", required):
            if each not in properties:
                raise UserError(
                    f"the JSON schema requires {short(each)}, which is not a property; add it"
                )
        white, others = self._white, schema.get("additionalProperties")
        if not properties:
            if others is False:
                return rf"\{{{white}\}}"
            if not isinstance(others, dict):
                raise UserError(
                    "an object of a JSON schema allows anything; give it properties, or "
                    "additionalProperties with a type"
                )
            pair = f"{_STRING}{white}:{white}{self._of(others)}"
            return rf"\{{{white}(?:{pair}(?:{white},{white}{pair})*{white})?\}}"
        pairs = [
            (
                f"{escape(_json(name))}{white}:{white}{self._of(value)}",
                name,
            )
            for name, value in properties.items()
        ]
        listed = [(pair, name in required) for pair, name in pairs]
        return rf"\{{{white}{_in_order(listed, f'{white},{white}')}{white}\}}"


def _in_order(pairs: list[tuple[str, bool]], comma: str) -> str:
    """Returns an expression of pairs in their order, each with whether it must be there."""
    # What may come after the pairs from each one on: after others, and as the first ones.
    after, first = "", ""
    for pair, needed in reversed(pairs):
        if needed:
            first, after = f"{pair}{after}", f"{comma}{pair}{after}"
        else:
            first, after = f"(?:{pair}{after}|{first})", f"(?:{comma}{pair})?{after}"
        if len(first) > _LONGEST:
            break  # refused
    return first


def _integer(schema: dict[str, Any]) -> str:
    lows, highs = [], []
    for name in _OF_TYPE["integer"]:
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
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise UserError(f"the JSON schema has no integer from {low} to {high}; change a bound")
    return integers(low, high)


def _types(schema: dict[str, Any]) -> list[str]:
    given = schema.get("type", [])
    kinds = given if isinstance(given, list) else [given]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _OF_TYPE:
            raise UserError(
                f"type={short(kind)} in a JSON schema is not known; give one of "
                f"{', '.join(_OF_TYPE)}"
            )
    return kinds


def _kind_of(value: Any) -> set[str]:
    """Returns the types that a value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {dict: "object", list: "array", str: "string", float: "number", type(None): "null"}
    return {names[type(value)]}


def _bounds(schema: dict[str, Any], what: str) -> tuple[int, int | None]:
    """Returns the least and the most of lengths or items."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for name, value in ((f"min{what}", least), (f"max{what}", most)):
        if value is not None and (type(value) is not int or not 0 <= value < 100_000):
            raise UserError(
                f"{name}={short(value)} in a JSON schema must be a whole number below 100000"
            )
    if most is not None and least > most:
        raise UserError(f"min{what} is more than max{what} in the JSON schema; change one of them")
    return least, most


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name}={short(value)} in the JSON schema must be a list")
    return value


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
