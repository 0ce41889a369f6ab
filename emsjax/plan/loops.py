"""Finds the loops of a decode program in the text of its compiled form."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LOOP = re.compile(r' while\(.* body=%?([\w.-]+).*op_name="([^"]*)"')
# Scopes in the target's forward pass, see `emsjax.engine.loop`: one loop per rung, and inside it a
# loop over the layers.
_RUNG, _LAYERS = "/while/body/target/while", "/while/body/target/while/body/while"

Computations = Mapping[str, list[str]]


class Loop(NamedTuple):
    """A loop.

    Attributes:
      body: the computation that it repeats.
      over_layers: whether it is the loop over a rung's layers.
    """

    body: str
    over_layers: bool


def computations(program: str) -> Computations:
    """Returns the lines of each computation, by name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found.setdefault(match[1], [])
        elif line.startswith("  "):
            lines.append(line)
    return found


def loops_in(line: str) -> list[Loop]:
    """Returns the loop of a line, if it has one."""
    return [Loop(body, scope.endswith(_LAYERS)) for body, scope in _LOOP.findall(line)]


def step_body(program: Computations) -> str:
    """Returns the computation of one step, the outermost loop; "" if there is none."""
    loops = (loop for lines in program.values() for line in lines for loop in _LOOP.findall(line))
    return next((body for body, scope in loops if scope.count("while") == 1), "")


def rung_bodies(program: Computations) -> list[str]:
    """Returns the computations of the rungs in a step, cheapest first."""
    lines = program.get(step_body(program), [])
    return [body for x in lines for body, scope in _LOOP.findall(x) if scope.endswith(_RUNG)]


def layer_bodies(program: Computations, rung: str) -> list[str]:
    """Returns the computation of one layer of each of a rung's stacks."""
    loops = (loop for line in program[rung] for loop in loops_in(line))
    return [loop.body for loop in loops if loop.over_layers]
