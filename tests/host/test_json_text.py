"""Everything that is written as JSON is JSON, without NaN and infinity."""

import ast
import json
import math
from pathlib import Path

import pytest

from emsjax.host.json_text import to_json

ROOT = Path(__file__).parents[2]
ROOMS = ("emsjax", "models", "pallas_kernels", "benchmarks", "scripts")


def strictly(text: str) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_null_takes_the_place_of_numbers_that_json_lacks(number: float):
    value = {"a": number, "b": [1.5, (number, "NaN")], "c": {"d": number, "e": True}}
    expected = {"a": None, "b": [1.5, [None, "NaN"]], "c": {"d": None, "e": True}}
    assert strictly(to_json(value)) == strictly(to_json(value, indent=1)) == expected
    assert strictly(to_json(number)) is None


def test_other_values_are_written_as_by_json():
    value = {"text": "é", "numbers": [0, -1.5, 1e300], "nothing": None}
    assert to_json(value, ensure_ascii=False) == json.dumps(value, ensure_ascii=False)


def test_nothing_else_writes_json():
    """Other calls of `json.dump` or `json.dumps` must refuse such numbers."""
    careless = []
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if ast.unparse(call.func) not in ("json.dump", "json.dumps"):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if given.get("allow_nan") != "False":
                careless.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert not careless
