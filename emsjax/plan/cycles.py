"""Reads the TPU compiler's estimate of a step's cycles from a compiled decode program.

XLA annotates each operation with the cycles it expects. Hand-written kernels have no annotation, so
they are counted.
"""

import re
from typing import NamedTuple

from emsjax.plan.loops import Computations, computations, loops_in, rung_bodies, step_body

# Of each hand-written kernel. The smallest of XLA's own operations has this many.
START_CYCLES = 1800

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = 'custom_call_target="tpu_custom_call"'


class StepCycles(NamedTuple):
    """Estimated cycles of one step.

    Attributes:
      around: cycles of drafting, planning, verifying and committing.
      rungs: cycles of the target's forward pass on each rung, without hand-written kernels.
      kernels: how many hand-written kernels such a pass starts.
    """

    around: int
    rungs: tuple[int, ...]
    kernels: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Cycles in which the kernels of a pass start, but do nothing yet."""
        return tuple(START_CYCLES * kernels for kernels in self.kernels)


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
    forward = [_cycles_and_kernels(found, body, num_layers) for body in rungs]
    everything, _ = _cycles_and_kernels(found, step_body(found), num_layers)
    cycles, kernels = zip(*forward, strict=True)
    return StepCycles(everything - sum(cycles), cycles, kernels)


def _cycles_and_kernels(program: Computations, name: str, num_layers: int) -> tuple[int, int]:
    """Returns the cycles of one run of a computation, and how many kernels it starts."""
    cycles = kernels = 0
    for line in program.get(name, ()):
        if found := _CYCLES.search(line):
            cycles += int(found[1])
        kernels += _KERNEL in line
        for loop in loops_in(line):
            turns = num_layers if loop.over_layers else 1
            more = _cycles_and_kernels(program, loop.body, num_layers)
            cycles, kernels = cycles + turns * more[0], kernels + turns * more[1]
    return cycles, kernels
