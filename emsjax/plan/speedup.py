"""How much faster than plain decoding, where all draft tokens are equally likely to be right."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from emsjax.engine.ladder import Rung
from emsjax.engine.load import Load
from emsjax.engine.worth import Economics, StepCosts, most_worth, without_prompts


class Speedup(NamedTuple):
    """Tokens a second over those of plain decoding.

    Attributes:
      planned: verifying what is worth it, as the planner chooses.
      drafted: how many tokens of each sample's draft it verifies, on average.
      fixed: always verifying whole drafts.
    """

    planned: float
    drafted: float
    fixed: float


def expected_speedup(
    costs: StepCosts,
    ladder: Sequence[Rung],
    *,
    num_slots: int,
    context: int,
    acceptance: float,
    draft_length: int,
) -> Speedup:
    """Of decoding with all slots busy; every slot has a whole draft, which costs nothing to make.

    Args:
      costs: of each rung, in seconds.
      ladder: rungs.
      num_slots: B.
      context: cached tokens of each slot.
      acceptance: how likely a draft token is right where those before it are.
      draft_length: k.
    """
    costs = without_prompts(costs, ladder, draft_length)
    survival = acceptance ** np.arange(1, draft_length + 1, dtype=np.float32)
    every = jnp.asarray(np.tile(survival.astype(np.float32), (num_slots, 1)))
    cached = num_slots * context
    slots = jnp.asarray(num_slots, jnp.int32)
    load = Load(slots, jnp.ones(num_slots, jnp.float32), jnp.asarray(cached, jnp.int32))
    # The planner takes the ladder's numbers as the loop has them: on the device.
    best = most_worth(every, ladder, Economics(_on_device(costs), load))
    plain = num_slots / _seconds(costs, _first_fit(ladder, num_slots, 1), cached)
    whole = _first_fit(ladder, num_slots * (draft_length + 1), draft_length + 1)
    fixed = num_slots * (1 + float(survival.sum())) / _seconds(costs, whole, cached)
    return Speedup(float(best.rate) / plain, float(best.drafts) / num_slots, fixed / plain)


def _on_device(costs: StepCosts) -> StepCosts:
    return StepCosts(*(jnp.asarray(part, jnp.float32) for part in costs))


def _seconds(costs: StepCosts, rung: int, cached: int) -> float:
    """Of a step on a rung."""
    return float(costs.rungs[rung]) + float(costs.cached[rung]) * cached


def _first_fit(ladder: Sequence[Rung], rows: int, longest: int) -> int:
    """The cheapest rung for so many rows, so many of them of one slot, and no more if there is."""
    fits = [n for n, r in enumerate(ladder) if r.capacity >= rows and r.max_q_len >= longest]
    return min(fits, key=lambda n: (ladder[n].max_q_len, n))
