"""What a step takes by the TPU compiler's own estimate, read from a compiled decode program.

XLA notes how many cycles it expects of each operation. Kernels written by hand have no such note.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r' while\(.* body=%?([\w.-]+).*op_name="([^"]*)"')
# The scope of the target's forward pass, see `emsjax.engine.loop`: one loop for each rung, and in
# it one over the layers.
_RUNG, _LAYERS = "/while/body/target/while", "/while/body/target/while/body/while"

Computations = Mapping[str, list[str]]


class StepCycles(NamedTuple):
    """Cycles of one step.

    Attributes:
      around: of drafting, planning, verifying and committing.
      rungs: of the target's forward pass on each rung, without the hand-written kernels.
    """

    around: int
    rungs: tuple[int, ...]


def read_cycles(program: str, num_rungs: int, num_layers: int) -> StepCycles | None:
    """Adds up the notes; None where the program does not look as expected.

    Loops of unknown length but that over the layers, such as a binary search, count as one turn.

    Args:
      program: text of a compiled decode program.
      num_rungs: R.
      num_layers: L.
    """
    computations = _computations(program)
    bodies = {scope: body for body, scope in _loops(program) if scope.count("while") == 1}
    step = next(iter(bodies.values()), "")
    lines = computations.get(step, [])
    rungs = [body for line in lines for body, scope in _loops(line) if scope.endswith(_RUNG)]
    if len(rungs) != num_rungs:
        return None
    forward = tuple(_cycles(computations, body, num_layers) for body in rungs)
    everything = _cycles(computations, step, num_layers)
    return StepCycles(everything - sum(forward), forward)


def _computations(program: str) -> Computations:
    """The lines of each computation."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found.setdefault(match[1], [])
        elif line.startswith("  "):
            lines.append(line)
    return found


def _loops(text: str) -> list[tuple[str, str]]:
    """Body and scope of each loop."""
    return _LOOP.findall(text)


def _cycles(computations: Computations, name: str, num_layers: int) -> int:
    """Of one run of a computation."""
    total = 0
    for line in computations.get(name, ()):
        if found := _CYCLES.search(line):
            total += int(found[1])
        for body, scope in _loops(line):
            turns = num_layers if scope.endswith(_LAYERS) else 1
            total += turns * _cycles(computations, body, num_layers)
    return total
