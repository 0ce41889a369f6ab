"""Structured outputs become automata whose texts are valid, and bad ones are refused."""

import json
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from emsjax.errors import UserError
from emsjax.requests import grammars
from emsjax.requests.grammars import Grammars, _compiled, _of_texts
from emsjax.requests.json_object import LEVELS, json_object
from emsjax.requests.json_range import integers
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.structured import StructuredOutputsParams
from emsjax.sampling.automaton import Automaton

MOST = 8192
ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string", "maxLength": 5}, "number": {"type": "integer"}},
    "required": ["number"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "object": ADDRESS,
    "optional": {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}},
    "list": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    "values": {"enum": ["a.b", 'q"', 3, None, [1, {"x": "é"}]]},
    "one value": {"const": {"k": ["(", "\\"]}},
    "either": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "null"}]},
    "types": {"type": ["integer", "boolean"]},
    "reference": {
        "type": "object",
        "properties": {"home": {"$ref": "#/$defs/address"}, "work": {"$ref": "#/$defs/address"}},
        "required": ["home", "work"],
        "$defs": {"address": ADDRESS},
    },
    "escaped reference": {
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/a~1b~01%20%C3%A9"}, {"$ref": "#/$defs/c d"}],
        "$defs": {"a/b~1 é": {"type": "boolean"}, "c d": {"type": "boolean"}},
    },
    "pattern": {"type": "string", "pattern": "^[a-z]{2}-\\d+$"},
    "date": {"type": "string", "format": "date-time"},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "names": {"type": "object", "properties": {'a.b"(é': {"type": "null"}}, "required": ['a.b"(é']},
    "range": {"type": "integer", "minimum": -12, "exclusiveMaximum": 105},
    "from": {"type": "integer", "minimum": 37},
    "mixed": {
        "type": "object",
        "properties": {
            "a": {"enum": [1]},
            "b": {"const": 2},
            "c": {"enum": [3]},
            "d": {"const": 4},
        },
        "required": ["c"],
    },
    "pair": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 2}],
        "minItems": 2,
        "maxItems": 2,
    },
    "typed values": {"type": "integer", "enum": [1, 2, "a", True]},
}


@cache
def compiled(schema: str) -> tuple[np.ndarray, np.ndarray]:
    return _compiled(StructuredOutputsParams(json=schema), MOST)


def some_text(rng: np.random.Generator, following: np.ndarray, final: np.ndarray) -> str:
    """Walks through an automaton at random, with a liking for what comes to an end."""
    state, text = 0, bytearray()
    while True:
        choices = np.flatnonzero(following[state] >= 0)
        if final[state] and (not len(choices) or rng.random() < 0.3):
            return text.decode()
        ends = [byte for byte in choices if chr(byte) in '}],":']
        byte = int(rng.choice(ends if ends and rng.random() < 0.5 else choices))
        text.append(byte)
        state = following[state, byte]


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_of_a_schema_are_valid(name: str):
    following, final = compiled(json.dumps(SCHEMAS[name]))
    rng, seen = np.random.default_rng(4), set()
    for _ in range(60):
        text = some_text(rng, following, final)
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        seen.add(text)
    assert len(seen) > 1 or name == "one value"


def fits(automaton: tuple[np.ndarray, np.ndarray], text: str) -> bool:
    following, final = automaton
    state = 0
    for byte in text.encode():
        state = following[state, byte]
        if state < 0:
            return False
    return bool(final[state])


def test_any_json_object():
    automaton, rng = json_object(), np.random.default_rng(5)
    for _ in range(300):
        assert isinstance(json.loads(some_text(rng, *automaton)), dict)
    value = {"é\n": [1, -0.5e-3, {"a": [True, False, None, "\\"]}], "b": {}, "c": []}
    for separators in [(",", ":"), (", ", ": ")]:
        assert fits(automaton, json.dumps(value, separators=separators, ensure_ascii=False))
    deep: Any = {}
    for _ in range(LEVELS - 1):
        deep = {"a": deep}
    assert fits(automaton, json.dumps(deep))
    for wrong in ['{"a": 01}', "[]", '{"a": 1,}', '{"a"}', '{"a": "\n"}', json.dumps({"a": deep})]:
        assert not fits(automaton, wrong), wrong


@pytest.mark.parametrize("choice", [["yes", "no"], ["a.b", "(", "a b\n", "é-", "[x]^{2}$&~#|\\"]])
def test_choices_are_exact(choice: list[str]):
    automaton = _of_texts(choice, MOST)
    assert all(fits(automaton, text) for text in choice)
    assert not any(fits(automaton, text) for text in ["", "axb", "ye", "yes no", "("[:0] + "(("])


@pytest.mark.parametrize(
    "regex",
    [
        *("a(,b)*", "(ab)*", "a?(b,)*a?", "(a,?b?)*", "a(,b){0,2}", "(,|ab)+(a,)?", "^a(,a)*$"),
        *("|ab", "[^,]*", "a.*b", "(a|ab)(,|b,)?", "a|b$"),
    ],
)
def test_texts_of_a_regular_expression_are_those_of_pythons(regex: str):
    """Among them are texts that may end and go on with what may not end at once."""
    automaton = _compiled(StructuredOutputsParams(regex=regex), MOST)
    for length in range(6):
        for letters in product("ab,", repeat=length):
            text = "".join(letters)
            assert fits(automaton, text) == bool(re.fullmatch(regex, text)), text
    assert fits(automaton, "\u00e9\u00e9") == bool(re.fullmatch(regex, "\u00e9\u00e9"))


def test_a_number_alone_may_have_decimals():
    automaton = compiled('{"type": "number"}')
    assert all(fits(automaton, text) for text in ("0", "-12", "1.5", "1.5e-3"))


def grammar(**given: Any) -> Automaton:
    bytes_of = [b"", *(bytes([byte]) for byte in range(256))]
    return Grammars(lambda: bytes_of, MOST, MOST, "the model").automaton(
        StructuredOutputsParams(**given)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no kind of output; give one of json, regex"),
        ({"regex": "a", "choice": ["b"]}, "has regex and choice; give one"),
        ({"regex": 3}, "regex=3 must be text"),
        ({"choice": "ab"}, "choice='ab' must be a list"),
        ({"choice": []}, "must be a list of at least one"),
        ({"choice": ["a", ""]}, "is empty"),
        ({"json": "{"}, "is not JSON"),
        ({"json": [1]}, "must be an object"),
        ({"json_object": 2}, "must be true or false"),
        ({"grammar": "root ::= a"}, "vLLM's and not emsjax's; set json, regex"),
        ({"regexp": "a"}, "did you mean regex"),
        ({"regex": "a", "whitespace_pattern": " "}, "whitespace_pattern is for json, not for rege"),
        ({"regex": "("}, "the regular expression '\\(' cannot be compiled"),
        ({"regex": "(?=a)b"}, "cannot be compiled"),
        ({"regex": "a)|(?:b"}, "cannot be compiled"),
        ({"json": {"type": "string", "pattern": "a)|(?:b"}}, "cannot be compiled"),
        ({"choice": ["a" * 9000]}, "the list of 1 choices needs over 8192 states"),
        ({"regex": "a{9000}"}, "needs 9001 states, more than the 8192 states"),
        ({"json": {"type": "number", "multipleOf": 3}}, "'multipleOf' in a JSON schema is not"),
        ({"json": {"type": "number", "minimum": "3"}}, "minimum='3' of a number"),
        ({"json": {"type": "number", "minimum": 3, "exclusiveMaximum": 3}}, "no number fits the b"),
        ({"json": {"type": "integer", "minimum": 3.5}}, "minimum=3.5 of an integer"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "no integer from 3 to 2"),
        ({"json": {"type": "strin"}}, "type='strin' in a JSON schema is not known"),
        ({"json": {}}, "allows any value"),
        ({"json": {"type": "object"}}, "allows anything; give it properties"),
        ({"json": {"type": "array"}}, "allows any items"),
        ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength is more than"),
        ({"json": {"items": 3}}, "a part of the JSON schema is 3"),
        ({"json": {"not": {}}}, "'not' in a JSON schema is not supported"),
        ({"json": {"$ref": "#/$defs/x"}}, "has nothing at '#/\\$defs/x'"),
        ({"json": {"type": "string", "pattern": "a.c"}}, "pattern 'a.c' allows a quote"),
        ({"json": {"type": "string", "pattern": 'a(,")*'}}, "allows a quote"),
        ({"json": {"type": "string", "pattern": "[a&&b]"}}, "cannot be compiled"),
        ({"json": {"type": "string", "format": "ipv4"}}, "format='ipv4' .* give one of date"),
        ({"json": {"type": "object", "required": ["a"]}}, "requires 'a', which is not a property"),
        ({"json": {"type": "object", "maxProperties": 2}}, "'maxProperties' in a JSON schema is n"),
        (
            {"json": {"anyOf": [{"type": "null"}], "maxLength": 3}},
            "anyOf and maxLength in one part",
        ),
        ({"json": {"pattern": "a", "maxLength": 3}}, "maxLength and pattern in one part"),
        ({"json": {"type": "null"}, "whitespace_pattern": "x?"}, "more than white space"),
    ],
)
def test_what_cannot_be_is_one_sentence(given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as caught:
        grammar(**given)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (-3, 7), (5, 5), (98, 1203), (-1203, -98), (None, -7), (-20, None)]
)
def test_ranges_are_exact(low: int | None, high: int | None):
    expression = re.compile(integers(low, high))
    for number in range(-1300, 1300):
        inside = (low is None or number >= low) and (high is None or number <= high)
        assert bool(expression.fullmatch(str(number))) == inside, number
    assert not any(expression.fullmatch(text) for text in ["", "-", "-0", "00", "05", "+5"])


def test_schemas_that_are_nested_too_deep_are_refused():
    deep: Any = {"type": "null"}
    for _ in range(60):
        deep = {"anyOf": [deep]}
    with pytest.raises(UserError, match="nested more than"):
        grammar(json=deep)


def test_a_process_that_takes_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "grammar_process.py"
    monkeypatch.setattr(grammars, "_PROGRAM", program)
    monkeypatch.setattr(grammars, "_TIME_LIMIT", 1.0)
    for body, message in [
        ("import os\nos.abort()", "needs too much memory or time"),
        ("import time\ntime.sleep(60)", "took more than 1 s to compile; try again"),
    ]:
        program.write_text(body)
        with pytest.raises(UserError, match=message):
            grammar(regex="a")


def test_a_machine_that_was_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made = Grammars(lambda: [b"", b"a"], MOST, MOST, "the model")
    slow = tmp_path / "grammar_process.py"
    slow.write_text("import time\ntime.sleep(60)")
    with monkeypatch.context() as busy:
        busy.setattr(grammars, "_PROGRAM", slow)
        busy.setattr(grammars, "_TIME_LIMIT", 0.1)
        with pytest.raises(UserError, match="try again"):
            made.automaton(StructuredOutputsParams(regex="a"))
    assert len(made.automaton(StructuredOutputsParams(regex="a"))) == 2


def test_the_library_is_needed_only_for_schemas_and_expressions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammars, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'emsjax\[structured\]'"):
        grammar(regex="a")
    assert len(grammar(json_object=True)) > 100
    assert len(grammar(choice=["ab", "ac"])) == 4


def test_an_automaton_is_kept():
    made = Grammars(lambda: [b"", b"a", b"b"], MOST, MOST, "the model")
    first = made.automaton(StructuredOutputsParams(choice=["ab"]))
    assert made.automaton(StructuredOutputsParams(choice=("ab",))) is first
    with pytest.raises(UserError, match="no text that the model can write"):
        made.automaton(StructuredOutputsParams(choice=["x"]))


def test_old_automata_are_dropped(monkeypatch: pytest.MonkeyPatch):
    made = Grammars(lambda: [b"", b"a", b"b"], MOST, MOST, "the model")
    first = made.automaton(StructuredOutputsParams(choice=["a"]))
    monkeypatch.setattr(grammars, "_KEPT_BYTES", 2 * first.nbytes)
    for choice in ("b", "a", "ab"):
        made.automaton(StructuredOutputsParams(choice=[choice]))
    assert made.automaton(StructuredOutputsParams(choice=["a"])) is not first


def test_parameters_take_a_mapping_and_compare():
    schema = {"type": "null"}
    given = SamplingParams(structured_outputs={"json": schema})
    assert given == SamplingParams(structured_outputs=StructuredOutputsParams(json=schema))
    assert hash(given) == hash(SamplingParams(structured_outputs={"json": '{"type": "null"}'}))
    with pytest.raises(UserError, match="ignore_eos leaves structured_outputs no end"):
        SamplingParams(structured_outputs={"regex": "a"}, ignore_eos=True)
    with pytest.raises(UserError, match="structured_outputs='a' must be"):
        SamplingParams(structured_outputs="a")
