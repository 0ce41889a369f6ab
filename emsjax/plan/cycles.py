"""Reads the TPU compiler's estimate of a step's cycles from a compiled decode program.

XLA annotates each operation with the cycles it expects. Hand-written kernels have no annotation.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r' while\(.* body=%?([\w.-]+).*op_name="([^"]*)"')
# Scopes in the target's forward pass, see `emsjax.engine.loop`: one loop per rung, and inside it a
# loop over the layers.
_RUNG, _LAYERS = "/while/body/target/while", "/while/body/target/while/body/while"

Computations = Mapping[str, list[str]]


class StepCycles(NamedTuple):
    """Estimated cycles of one step.

    Attributes:
      around: cycles of drafting, planning, verifying and committing.
      rungs: cycles of the target's forward pass on each rung, without hand-written kernels.
    """

    around: int
    rungs: tuple[int, ...]


def read_cycles(program: str, num_rungs: int, num_layers: int) -> StepCycles | None:
    """Adds up the annotated cycles of a program.

    The loop over the layers counts L times. Every other loop, such as a binary search, counts
    once, because its number of iterations is unknown.

    Args:
      program: text of a compiled decode program.
      num_rungs: R, the number of rungs.
      num_layers: L.

    Returns:
      The cycles, or None if the program does not have the expected structure.
    """
    found = computations(program)
    bodies = {scope: body for body, scope in _loops(program) if scope.count("while") == 1}
    step = next(iter(bodies.values()), "")
    lines = found.get(step, [])
    rungs = [body for line in lines for body, scope in _loops(line) if scope.endswith(_RUNG)]
    if len(rungs) != num_rungs:
        return None
    forward = tuple(_cycles(found, body, num_layers) for body in rungs)
    everything = _cycles(found, step, num_layers)
    return StepCycles(everything - sum(forward), forward)


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


def _loops(text: str) -> list[tuple[str, str]]:
    """Returns the body and scope of each loop."""
    return _LOOP.findall(text)


def _cycles(program: Computations, name: str, num_layers: int) -> int:
    """Returns the cycles of one run of a computation."""
    total = 0
    for line in program.get(name, ()):
        if found := _CYCLES.search(line):
            total += int(found[1])
        for body, scope in _loops(line):
            turns = num_layers if scope.endswith(_LAYERS) else 1
            total += turns * _cycles(program, body, num_layers)
    return total
