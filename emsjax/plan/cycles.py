"""Reads the TPU compiler's estimate of a step's cycles from a compiled decode program.

XLA annotates each operation with the cycles it expects. Hand-written kernels have no annotation.
"""

import re
from typing import NamedTuple

from emsjax.plan.loops import Computations, computations, loops_in, rung_bodies, step_body

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


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
    rungs = rung_bodies(found)
    if len(rungs) != num_rungs:
        return None
    forward = tuple(_cycles(found, body, num_layers) for body in rungs)
    everything = _cycles(found, step_body(found), num_layers)
    return StepCycles(everything - sum(forward), forward)


def _cycles(program: Computations, name: str, num_layers: int) -> int:
    """Returns the cycles of one run of a computation."""
    total = 0
    for line in program.get(name, ()):
        if found := _CYCLES.search(line):
            total += int(found[1])
        for loop in loops_in(line):
            turns = num_layers if loop.over_layers else 1
            total += turns * _cycles(program, loop.body, num_layers)
    return total
