"""Drawn JSON schemas: texts of their automata are valid for `jsonschema`, or they are refused."""

import json
import re
from decimal import Decimal
from itertools import combinations
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.errors import UserError
from emsjax.requests.grammar_process import _automaton
from emsjax.requests.json_range import Bound, numbers
from emsjax.requests.json_schema import schema_regex
from tests.requests.test_structured import fits, some_text

NODE = "#/$defs/node"
VALUES = st.sampled_from([None, True, 1, -20, 2.5, "a", 'q"', "(b)", [1], {"k": "v"}])
NUMBERS = st.integers(-50, 50)


BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]


def some(names: list[str], values: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), values, max_size=3)


def of_type(kind: str, *more: st.SearchStrategy[dict[str, Any]]) -> Any:
    return st.tuples(*more).map(
        lambda parts: {"type": kind} | {k: v for p in parts for k, v in p.items()}
    )


def with_parts(part: Any) -> Any:
    """Draws a part of a schema that has other parts."""
    sizes = some(["minItems", "maxItems"], st.integers(0, 3))
    properties = st.dictionaries(
        st.sampled_from(["a", "b", 'c"', "k"]), part, min_size=1, max_size=3
    )
    objects = of_type(
        "object",
        st.fixed_dictionaries({"properties": properties}),
        st.sampled_from([{}, {"additionalProperties": False}]),
    )
    required = objects.flatmap(
        lambda made: st.lists(st.sampled_from(sorted(made["properties"])), unique=True).map(
            lambda names: {**made, "required": names}
        )
    )
    alternatives = st.lists(part, min_size=1, max_size=3)
    return (
        required
        | of_type("object", st.fixed_dictionaries({"additionalProperties": part}))
        | of_type("array", st.fixed_dictionaries({"items": part}), sizes)
        | st.fixed_dictionaries({"anyOf": alternatives})
        | st.fixed_dictionaries({"oneOf": alternatives})
    )


ENUM = st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=5)})
UNIQUE = st.fixed_dictionaries({"items": ENUM, "uniqueItems": st.just(True)})
SIMPLE = (
    st.sampled_from([{"type": kind} for kind in ("null", "boolean")])
    | of_type("integer", some(BOUNDS, st.integers(-50, 50)))
    | of_type("number", some(BOUNDS, st.sampled_from([-20, -1.5, -0.25, 0, 0.001, 0.7, 1, 30.5])))
    | of_type("string", some(["minLength", "maxLength"], st.integers(0, 4)))
    | of_type("array", UNIQUE, some(["minItems", "maxItems"], st.integers(0, 4)))
    | ENUM
    | st.fixed_dictionaries({"const": VALUES})
    | st.just({"$ref": NODE})
)
SCHEMAS = st.recursive(SIMPLE, with_parts, max_leaves=8)


def regex_or_refusal(schema: Any) -> tuple[str, str]:
    try:
        return schema_regex(json.dumps(schema), "[ ]?")[0], ""
    except UserError as error:
        return "", str(error)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, SCHEMAS, st.integers(0, 2**32 - 1))
def test_texts_are_valid(schema: dict[str, Any], node: dict[str, Any], seed: int):
    schema = {**schema, "$defs": {"node": node}}
    regex, refusal = regex_or_refusal(schema)
    assert len(refusal) < 500
    assert "\n" not in refusal
    if refusal or len(regex) > 20_000:  # which takes long to compile
        return
    following, final = map(np.asarray, _automaton(regex, json_text=True))
    rng = np.random.default_rng(seed)
    for _ in range(20):
        text = some_text(rng, following, final)
        jsonschema.validate(json.loads(text, parse_float=Decimal), schema)


def compiled(schema: Any) -> tuple[np.ndarray, np.ndarray]:
    following, final = _automaton(schema_regex(json.dumps(schema), "")[0], json_text=True)
    return np.asarray(following), np.asarray(final)


@pytest.mark.parametrize("length", [40, 1000])
def test_long_strings_are_compiled_soon(length: int):
    automaton = compiled({"type": "string", "maxLength": length})
    assert len(automaton[1]) < 11 * length
    for count, wanted in [(0, True), (length, True), (length + 1, False)]:
        for letter in ("a", "\u00e9", "\n", '"', "\U0001f600"):
            assert fits(automaton, json.dumps(letter * count, ensure_ascii=False)) == wanted


def test_a_schema_that_refers_to_itself_has_some_levels():
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    automaton, text = compiled(tree), '{"kids":[]}'
    assert fits(automaton, "{}")
    levels = 1
    while fits(automaton, text):
        text, levels = text.replace("[]", '[{"kids":[]}]'), levels + 1
    assert levels > 4
    either = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}
    pair = {"type": "object", "properties": {"next": either}, "required": ["next"]}
    automaton = compiled({"$ref": "#/$defs/list", "$defs": {"list": pair}})
    assert fits(automaton, '{"next":{"next":{"next":null}}}')
    assert not fits(automaton, '{"next":{}}')


def test_a_schema_without_an_end_is_refused():
    pair = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    for schema in (pair, {"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}):
        with pytest.raises(UserError, match="without an end within"):
            schema_regex(json.dumps(schema), "")


@pytest.mark.parametrize(("least", "most"), [(0, None), (1, 2), (2, 2), (0, 1), (3, 9), (4, None)])
def test_values_that_must_be_different_come_in_order(least: int, most: int | None):
    values = ["a", "b", 3, None]
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": values}, "minItems": least}
    automaton = compiled(schema | ({} if most is None else {"maxItems": most}))
    for count in range(5):
        wanted = least <= count <= (4 if most is None else most)
        for chosen in combinations(values, count):
            assert fits(automaton, json.dumps(chosen, separators=(",", ":"))) == wanted, chosen
    for wrong in ('["b","a"]', '["a","a"]', "[3,3]", '["a",]', "[,3]"):
        assert not fits(automaton, wrong)


def of_kind(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"kind": {"const": kind}, **more},
        "required": ["kind"],
    }


NULL, TEXT = {"type": "null"}, {"type": "string", "maxLength": 2}
DISJOINT = [
    [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}, TEXT, NULL],
    [of_kind("a", x=NULL), of_kind("b", x=NULL), {"enum": [1, "kind"]}],
    [{"enum": [1, "a"]}, {"const": "b"}, {"type": "array", "items": NULL}],
    [
        {"type": "object", "properties": {"a": NULL}, "required": ["a"]},
        {"type": "object", "properties": {"b": NULL}, "additionalProperties": False},
    ],
    [{"anyOf": [TEXT, NULL]}, {"type": ["integer", "boolean"]}],
]
OVERLAPPING = [
    [{"type": "integer"}, {"type": "number"}],
    [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 3}],
    [{"enum": ["a", "b"]}, {"const": "b"}],
    [{"const": 1}, {"enum": [1.0]}],
    [TEXT, {"anyOf": [NULL, {"const": "a"}]}],
    [{"minLength": 1}, NULL],  # also fits null
    [of_kind("a"), of_kind("a", x=NULL)],
    [{**of_kind("a"), "required": []}, of_kind("b")],
    [
        {"type": "object", "properties": {"a": NULL}, "required": ["a"]},
        {"type": "object", "properties": {"b": NULL}},
    ],
]


@pytest.mark.parametrize("parts", DISJOINT)
def test_parts_that_exclude_each_other_are_alternatives(parts: list[Any]):
    rng, schema = np.random.default_rng(3), {"oneOf": parts}
    automaton = compiled(schema)
    for _ in range(50):
        jsonschema.validate(json.loads(some_text(rng, *automaton)), schema)


@pytest.mark.parametrize("parts", OVERLAPPING)
def test_parts_that_a_value_may_fit_both_are_refused(parts: list[Any]):
    with pytest.raises(UserError, match="may fit part 1 and part 2 of oneOf"):
        schema_regex(json.dumps({"oneOf": parts}), "")


def test_the_property_that_tells_parts_apart_is_always_there():
    """As pydantic writes unions of models whose kind has a default."""
    parts = [{**of_kind(kind), "required": []} for kind in ("a", "b")]
    schema = {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": dict(zip("ab", parts, strict=True)),
    }
    automaton = compiled(schema)
    assert fits(automaton, '{"kind":"a"}')
    assert fits(automaton, '{"kind":"b"}')
    assert not fits(automaton, "{}")
    with pytest.raises(UserError, match="of oneOf"):
        schema_regex(json.dumps({**schema, "discriminator": {"propertyName": "other"}}), "")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True, "items": TEXT}, "uniqueItems .* needs items that"),
        ({"type": "array", "uniqueItems": 1, "items": TEXT}, "uniqueItems=1 .* true or false"),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 3},
            "minItems is 3 .* its enum has 2 values",
        ),
        (
            {"type": "array", "uniqueItems": True, "prefixItems": [NULL, TEXT]},
            "uniqueItems and prefixItems",
        ),
        ({"type": "number", "minimum": 1e-30}, "at most 20 digits after the point"),
        ({"type": "number", "maximum": True}, "maximum=True of a number"),
    ],
)
def test_what_is_not_enforced_is_named(schema: Any, message: str):
    with pytest.raises(UserError, match=message):
        schema_regex(json.dumps(schema), "")


def test_schemas_that_grow_without_bounds_are_given_up_soon():
    wide = {f"p{number}": {"$ref": "#"} for number in range(200)}
    doubled = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(15)}
    for schema in (
        {"type": "object", "properties": wide},
        {"$ref": "#/$defs/d0", "$defs": {**doubled, "d15": NULL}},
    ):
        with pytest.raises(UserError, match="too large for an automaton"):
            schema_regex(json.dumps(schema), "")


ENDS = [None, *map(Decimal, ["-12.25", "-1", "-0.07", "0", "0.1", "0.95", "3", "11.305"])]
TEXTS = [
    f"{sign}{whole}{rest}"
    for sign in ("", "-")
    for whole in (0, 1, 2, 3, 10, 11, 12, 13)
    for rest in (
        "",
        ".0",
        ".05",
        ".07",
        ".070",
        ".071",
        ".1",
        ".10",
        ".2",
        ".25",
        ".2500",
        ".26",
        ".305",
        ".3049",
        ".306",
        ".9",
        ".95",
        ".949",
        ".951",
        ".00001",
    )
]


@pytest.mark.parametrize("low", ENDS)
@pytest.mark.parametrize("high", ENDS)
def test_ranges_of_decimals_are_exact(low: Decimal | None, high: Decimal | None):
    for opens in ((False, False), (True, False), (False, True), (True, True)):
        given = zip((low, high), opens, strict=True)
        ends = [None if end is None else Bound(end, is_open) for end, is_open in given]
        expression = re.compile(numbers(*ends) or "(?!)")
        for text in TEXTS:
            value = Decimal(text)
            above = low is None or value > low or (value == low and not opens[0])
            below = high is None or value < high or (value == high and not opens[1])
            wanted = above and below and not (text.startswith("-") and not value)
            assert bool(expression.fullmatch(text)) == wanted, (text, ends)
        for wrong in ("", "-", "01", "1.", ".5", "1e0", "+1", "00.1", "--1"):
            assert not expression.fullmatch(wrong), (wrong, ends)
