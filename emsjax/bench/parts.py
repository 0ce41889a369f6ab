"""Times the parts of a step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from emsjax.bench.contenders import Contender
from emsjax.bench.stepped import PARTS, Step, SteppedEngine
from emsjax.bench.target import Target
from emsjax.drafters.chains import as_chains
from emsjax.engine.job import Job


class StepParts(NamedTuple):
    """Figures of an average step.

    Attributes:
      seconds: time of each of `PARTS`.
      unused_rows: share of a step's rows that hold neither a known nor a draft token.
    """

    seconds: dict[str, float]
    unused_rows: float


def watched(
    contender: Contender,
    target: Target,
    on_step: Callable[[Step], None],
    *,
    chains: bool = False,
) -> Contender:
    """The same contender, stepped part by part.

    Args:
      contender: whose drafter, ladder, costs and policy are used.
      target: the model.
      on_step: called after every step.
      chains: whether to draft chains, even if the contender drafts trees.

    Returns:
      A contender whose memory and compile time are not known.
    """
    engine = contender.engine
    stepped = SteppedEngine(
        target.model,
        as_chains(engine.drafter) if chains else engine.drafter,
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
    """Decodes the jobs part by part.

    Args:
      contender: the contender to look into.
      target: the model.
      cache: holds the jobs' prompts; consumed.
      jobs: slot by slot.

    Returns:
      The cache, which still holds the prompts, and the mean over all steps but the first.
    """
    steps: list[Step] = []
    cache, _ = watched(contender, target, steps.append).decode(cache, jobs)
    counted = steps[1:] or steps  # the first one compiles
    seconds = {part: sum(s.seconds[part] for s in counted) / len(counted) for part in PARTS}
    ladder = contender.engine.ladder
    computed = sum(ladder[int(step.plan.rung)].capacity for step in counted)
    used = sum(int(step.plan.q_lens.sum()) for step in counted)
    return cache, StepParts(seconds, 1 - used / computed)
