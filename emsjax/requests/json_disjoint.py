"""Whether a value can fit two parts of a JSON schema, as `oneOf` forbids."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

from emsjax.requests.json_keywords import NOTES, integer_range, kinds_of, types_of

Schema = dict[str, Any]
Resolve = Callable[[Any], Any]


def overlapping(parts: list[Any], resolve: Resolve, tag: str | None) -> tuple[int, int] | None:
    """Returns two parts that a value may fit both, as far as is known; None if there are none.

    Args:
      parts: the alternatives.
      resolve: returns what a `$ref` leads to.
      tag: a property that all objects among them have, if the schema says so.
    """
    known = _Disjoint(resolve, tag)
    pairs = combinations(range(len(parts)), 2)
    return next((pair for pair in pairs if not known.are(*(parts[n] for n in pair))), None)


# How deep properties of properties are looked at.
_DEEPEST = 2


class _Disjoint:
    """What is known about parts that no value fits both."""

    def __init__(self, resolve: Resolve, tag: str | None):
        self._resolve, self._tag = resolve, tag

    def are(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether no value fits both parts; False if that is not known."""
        lists = self._leaves(one), self._leaves(other)
        if any(each is None for each in lists):
            return False
        first, second = (each or [] for each in lists)
        return all(self._leaves_are(a, b, depth) for a in first for b in second)

    def _leaves(self, part: Any, depth: int = 8) -> list[Schema] | None:
        """Returns the alternatives that a part consists of; None if they are too deep."""
        if not isinstance(part, dict) or not depth:
            return None
        names = [name for name in part if name not in NOTES and name != "type"]
        if names == ["$ref"]:
            return self._leaves(self._resolve(part["$ref"]), depth - 1)
        if names and names[0] in ("anyOf", "oneOf", "allOf") and isinstance(part[names[0]], list):
            found: list[Schema] = []
            for each in part[names[0]]:
                leaves = self._leaves(each, depth - 1)
                if leaves is None:
                    return None
                found += leaves
            return found
        return [part]

    def _leaves_are(self, one: Schema, other: Schema, depth: int) -> bool:
        values = _values(one), _values(other)
        if values[0] is not None and values[1] is not None:
            return not any(a == b for a in values[0] for b in values[1])
        common = _kinds(one) & _kinds(other)
        if not common:
            return True
        if values != (None, None):
            return False
        if common == {"object"}:
            return depth < _DEEPEST and self._objects_are(one, other, depth)
        return common <= {"integer", "number"} and _ranges_are(one, other)

    def _objects_are(self, one: Schema, other: Schema, depth: int) -> bool:
        if self._lacks_what(one, other) or self._lacks_what(other, one):
            return True
        mine, its = _properties(one), _properties(other)
        both = self._needed(one) & self._needed(other) & mine.keys() & its.keys()
        return any(self.are(mine[name], its[name], depth + 1) for name in both)

    def _lacks_what(self, one: Schema, other: Schema) -> bool:
        """Whether one object must have a property that the other may not have."""
        closed = other.get("additionalProperties") is False
        return closed and bool(self._needed(one) - _properties(other).keys())

    def _needed(self, part: Schema) -> set[str]:
        required = part.get("required", [])
        names = {each for each in required if isinstance(each, str)}
        tag = self._tag
        return names | {tag} if tag is not None and tag in _properties(part) else names


def _properties(part: Schema) -> Schema:
    found = part.get("properties", {})
    return found if isinstance(found, dict) else {}


def _values(part: Schema) -> list[Any] | None:
    """Returns the values that a part lists; None if it lists none."""
    values = [part["const"]] if "const" in part else part.get("enum")
    if not isinstance(values, list):
        return None
    kinds = set(types_of(part))
    return [value for value in values if not kinds or kinds_of(value) & kinds]


def _kinds(part: Schema) -> set[str]:
    """Returns the types of values that fit a part; a whole number is of two types."""
    values = _values(part)
    if values is not None:
        return set().union(*map(kinds_of, values))
    # Without a type, what a schema says about one leaves all others as they are.
    kinds = set(types_of(part)) or {"object", "array", "string", "number", "boolean", "null"}
    return kinds | ({"integer"} if "number" in kinds else set())


def _ranges_are(one: Schema, other: Schema) -> bool:
    if {*types_of(one), *types_of(other)} != {"integer"}:
        return False
    (low, high), (least, most) = integer_range(one), integer_range(other)
    return (high is not None and least is not None and high < least) or (
        most is not None and low is not None and most < low
    )
