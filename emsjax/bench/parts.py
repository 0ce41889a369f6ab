"""Where the time of a step goes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from emsjax.bench.contenders import Contender
from emsjax.bench.stepped import PARTS, Step, SteppedEngine
from emsjax.bench.target import Target
from emsjax.engine.job import Job


class StepParts(NamedTuple):
    """Of an average step.

    Attributes:
      seconds: of each of `PARTS`.
      unused_rows: share of the shape's rows that nothing was put into.
    """

    seconds: dict[str, float]
    unused_rows: float


def watched(contender: Contender, target: Target, on_step: Callable[[Step], None]) -> Contender:
    """The same contender, stepped part by part; its memory and compile time are not known."""
    engine = contender.engine
    stepped = SteppedEngine(
        target.model,
        engine.drafter,
        engine.ladder,
        on_step=on_step,
        num_slots=engine.num_slots,
        capacity=engine.capacity,
        costs=engine.costs,
        policy=engine.policy,
        **target.options,
    )
    return Contender(contender.spec, stepped, 0.0, None)


def time_parts(
    contender: Contender, target: Target, cache: jax.Array, jobs: Sequence[Job]
) -> tuple[jax.Array, StepParts]:
    """The cache given back, and where the time went."""
    steps: list[Step] = []
    cache, _ = watched(contender, target, steps.append).decode(cache, jobs)
    counted = steps[1:] or steps  # the first one compiles
    seconds = {part: sum(s.seconds[part] for s in counted) / len(counted) for part in PARTS}
    ladder = contender.engine.ladder
    computed = sum(ladder[int(step.plan.rung)].capacity for step in counted)
    used = sum(int(step.plan.q_lens.sum()) for step in counted)
    return cache, StepParts(seconds, 1 - used / computed)
