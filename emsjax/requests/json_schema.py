"""JSON schemas as regular expressions, all of whose texts are valid.

An expression may allow less than its schema does: objects have no further properties, and those
they have are in the order of the schema; so are the values of a list that must be unique. Parts
that refer to themselves are written out to some depth. What it could not enforce is refused by
name.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from emsjax.errors import UserError, short
from emsjax.requests.json_disjoint import overlapping
from emsjax.requests.json_keywords import (
    ALONE,
    KNOWN,
    NOTES,
    OF_TYPE,
    at,
    bounds,
    integer_range,
    kinds_of,
    listed,
    number_range,
    types_of,
)
from emsjax.requests.json_range import integers, numbers
from emsjax.requests.json_sequence import LONGEST, TooLongError, in_order, some_of
from emsjax.requests.json_string import ANY_STRING, string

_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
# The deepest nesting of a schema, and the most parts, those of references counted each time.
_DEEPEST, _MOST_PARTS = 40, 20_000
# How often a part that refers to itself is written out inside itself, as far as there is room.
_LEVELS = (4, 3, 2)


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
    for levels in _LEVELS:
        try:
            made = _Schema(json.loads(text), f"(?:{white})", levels)
        except TooLongError:
            continue
        if made.regex is None:
            raise UserError(
                f"the JSON schema refers to itself without an end within {levels} levels; make a "
                "property optional, or allow null"
            )
        return made.regex, made.patterns
    raise UserError(
        "the JSON schema is too large for an automaton; have fewer optional properties and fewer "
        "levels"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


class _Schema:
    """A schema while its expression is made.

    Attributes:
      regex: the expression; None if no text fits within the levels.
      patterns: the patterns in it.
    """

    def __init__(self, root: Any, white: str, levels: int):
        self._root, self._white, self._levels = root, white, levels
        self._refs: list[str] = []
        self._depth = self._count = 0
        self.patterns: list[str] = []
        self.regex = self._of(root)

    def _of(self, schema: Any, tag: str | None = None) -> str | None:
        """Returns the expression of a part of the schema; None if no text fits.

        Args:
          schema: the part.
          tag: a property that it must have if it is an object.
        """
        if not isinstance(schema, dict):
            raise UserError(
                f"a part of the JSON schema is {short(schema)}; it must be an object with a type"
            )
        for name in schema:
            if name not in KNOWN:
                raise UserError(
                    f"{short(name)} in a JSON schema is not supported; leave it out and check the "
                    "output for it"
                )
        if self._depth == _DEEPEST:
            raise UserError(
                f"the JSON schema is nested more than {_DEEPEST} deep; write less of it"
            )
        self._depth += 1
        self._count += 1
        alone = schema.keys() & set(ALONE)
        found = self._alone(schema, tag) if alone else self._typed(schema, tag)
        self._depth -= 1
        if len(found or "") > LONGEST or self._count > _MOST_PARTS:
            raise TooLongError
        return None if found is None else f"(?:{found})"

    def _alone(self, schema: dict[str, Any], tag: str | None) -> str | None:
        (name, *others) = [each for each in schema if each not in NOTES and each != "type"]
        if others:
            raise UserError(
                f"{name} and {others[0]} in one part of a JSON schema are not supported; leave one "
                "of them out"
            )
        value = schema[name]
        if name == "$ref":
            return self._reference(value, tag)
        if name in ("const", "enum"):
            values = self._values([value] if name == "const" else listed(name, value), schema)
            return "|".join(escape(_json(each)) for each in values)
        parts = listed(name, value)
        if not parts or (name == "allOf" and len(parts) > 1):
            raise UserError(f"{name} of {len(parts)} parts in a JSON schema is not supported")
        if name == "oneOf":
            tag = _tag(schema)
            self._check_one_of(parts, tag)
        return _either([self._of(part, tag) for part in parts])

    def _check_one_of(self, parts: list[Any], tag: str | None) -> None:
        pair = overlapping(parts, partial(at, self._root), tag)
        if pair is not None:
            raise UserError(
                f"a value may fit part {pair[0] + 1} and part {pair[1] + 1} of oneOf in the JSON "
                "schema; require a property in both that has a const of its own, or use anyOf"
            )

    def _values(self, values: list[Any], schema: dict[str, Any]) -> list[Any]:
        kinds = types_of(schema)
        fitting = [value for value in values if not kinds or kinds_of(value) & set(kinds)]
        if not fitting:
            raise UserError("enum or const in the JSON schema has no value of its type; change one")
        return fitting

    def _reference(self, name: Any, tag: str | None) -> str | None:
        found = at(self._root, name)
        if self._refs.count(name) == self._levels:
            return None
        self._refs.append(name)
        regex = self._of(found, tag)
        self._refs.pop()
        return regex

    def _typed(self, schema: dict[str, Any], tag: str | None) -> str | None:
        kinds = types_of(schema) or [
            kind
            for kind, names in OF_TYPE.items()
            if schema.keys() & set(names) and kind != "integer"  # which is a number
        ]
        if not kinds:
            raise UserError(
                "a part of the JSON schema allows any value, which has no automaton; give it a type"
            )
        known = {name for kind in kinds for name in OF_TYPE.get(kind, ())}
        for name in schema.keys() - NOTES - {"type"}:
            if name not in known:
                raise UserError(
                    f"{name} of type {' or '.join(kinds)} in a JSON schema is not supported; leave "
                    "it out"
                )
        makers: dict[str, Callable[[dict[str, Any]], str | None]] = {
            "object": lambda given: self._object(given, tag),
            "array": self._array,
            "string": self._string,
            "integer": _integer,
            "number": _number,
            "boolean": lambda _: "true|false",
            "null": lambda _: "null",
        }
        return _either([makers[kind](schema) for kind in kinds])

    def _string(self, schema: dict[str, Any]) -> str:
        regex, patterns = string(schema)
        self.patterns += patterns
        return regex

    def _array(self, schema: dict[str, Any]) -> str | None:
        least, most = bounds(schema, "Items")
        white = self._white
        empty = rf"\[{white}\]"
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise UserError(f"uniqueItems={short(unique)} in a JSON schema must be true or false")
        if "prefixItems" in schema:
            return self._tuple(schema, least, most)
        if "items" not in schema:
            raise UserError("an array of a JSON schema allows any items; give it items with a type")
        if most == 0:
            return empty
        if unique and most != 1:
            return self._unique(schema["items"], least, most)
        item = self._of(schema["items"])
        if item is None:
            return None if least else empty
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f"{item}(?:{white},{white}{item}){more}{white}"
        return rf"\[{white}{items}\]" if least else rf"\[{white}(?:{items})?\]"

    def _tuple(self, schema: dict[str, Any], least: int, most: int | None) -> str | None:
        """Returns the expression of an array each item of which has a schema of its own."""
        white = self._white
        parts = listed("prefixItems", schema["prefixItems"])
        if len(parts) < least or (most is not None and len(parts) > most):
            raise UserError(
                f"prefixItems has {len(parts)} parts in the JSON schema, which minItems and "
                "maxItems do not allow; change one of them"
            )
        if schema.get("uniqueItems") and len(parts) > 1:
            raise UserError(
                "uniqueItems and prefixItems in one part of a JSON schema are not supported; leave "
                "one of them out"
            )
        items = [each for each in map(self._of, parts) if each is not None]
        if len(items) < len(parts):
            return None
        return rf"\[{white}{f'{white},{white}'.join(items)}{white}\]"

    def _unique(self, items: Any, least: int, most: int | None) -> str | None:
        """Returns the expression of an array of different values, in the order of their list."""
        if self._of(items) is None:  # also what leads nowhere
            return None if least else rf"\[{self._white}\]"
        while isinstance(items, dict) and "$ref" in items:
            items = at(self._root, items["$ref"])
        if not isinstance(items, dict) or not items.keys() & {"enum", "const"}:
            raise UserError(
                "uniqueItems in a JSON schema needs items that an enum lists, or maxItems of 1; "
                "leave it out and check the output for it"
            )
        given = [items["const"]] if "const" in items else items["enum"]
        values: list[Any] = []
        for each in self._values(given, items):
            if each not in values:  # 1 and 1.0 are one value
                values.append(each)
        if least > len(values):
            raise UserError(
                f"minItems is {least} in the JSON schema, and its enum has {len(values)} values; "
                "change one of them"
            )
        white, parts = self._white, [escape(_json(value)) for value in values]
        most = len(parts) if most is None else min(most, len(parts))
        return rf"\[{white}{some_of(parts, least, most, f'{white},{white}')}{white}\]"

    def _object(self, schema: dict[str, Any], tag: str | None) -> str | None:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise UserError(f"properties={short(properties)} in the JSON schema must be an object")
        for each in listed("required", required):
            if each not in properties:
                raise UserError(
                    f"the JSON schema requires {short(each)}, which is not a property; add it"
                )
        white, others = self._white, schema.get("additionalProperties")
        if not properties:
            return self._map(others)
        listed_pairs = []
        for name, value in properties.items():
            regex, needed = self._of(value), name in required or name == tag
            if regex is None and needed:
                return None
            if regex is not None:
                pair = f"{escape(_json(name))}{white}:{white}{regex}"
                listed_pairs.append((pair, needed))
        if not listed_pairs:
            return self._map(False)
        return rf"\{{{white}{in_order(listed_pairs, f'{white},{white}')}{white}\}}"

    def _map(self, values: Any) -> str:
        """Returns the expression of an object with any names, whose values have this schema."""
        white = self._white
        empty = rf"\{{{white}\}}"
        if values is False:
            return empty
        if not isinstance(values, dict):
            raise UserError(
                "an object of a JSON schema allows anything; give it properties, or "
                "additionalProperties with a type"
            )
        regex = self._of(values)
        if regex is None:
            return empty
        pair = f"{ANY_STRING}{white}:{white}{regex}"
        return rf"\{{{white}(?:{pair}(?:{white},{white}{pair})*{white})?\}}"


def _either(expressions: list[str | None]) -> str | None:
    """Returns the expression of what fits one of several, of which None fits nothing."""
    fitting = [each for each in expressions if each is not None]
    return "|".join(f"(?:{each})" for each in fitting) if fitting else None


def _tag(schema: dict[str, Any]) -> str | None:
    """Returns the property by which OpenAPI tells the parts of `oneOf` apart, if it is named."""
    named = schema.get("discriminator")
    name = named.get("propertyName") if isinstance(named, dict) else None
    return name if isinstance(name, str) else None


def _integer(schema: dict[str, Any]) -> str:
    low, high = integer_range(schema)
    if low is not None and high is not None and low > high:
        raise UserError(f"the JSON schema has no integer from {low} to {high}; change a bound")
    return integers(low, high)


def _number(schema: dict[str, Any]) -> str:
    low, high = number_range(schema)
    if low is None and high is None:
        return _NUMBER
    found = numbers(low, high)
    if found is None:
        raise UserError("no number fits the bounds in the JSON schema; change one of them")
    return found
