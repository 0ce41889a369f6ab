"""The expected speedup over plain decoding, given one acceptance probability for all tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from emsjax.engine.ladder import Rung
from emsjax.engine.load import Load
from emsjax.engine.worth import Economics, StepCosts, most_worth, without_prompts


class Speedup(NamedTuple):
    """Tokens per second relative to plain decoding.

    Attributes:
      planned: speedup if the planner chooses how many draft tokens to verify.
      drafted: mean number of draft tokens per sample that the planner verifies.
      fixed: speedup if whole drafts are always verified.
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
    """Returns the speedup if all slots are busy and have whole drafts that cost nothing to make.

    Args:
      costs: costs of a step on each rung, in seconds.
      ladder: the rungs.
      num_slots: B.
      context: cached tokens per slot.
      acceptance: probability that a draft token is accepted if those before it are.
      draft_length: k.
    """
    costs = without_prompts(costs, ladder, draft_length)
    survival = acceptance ** np.arange(1, draft_length + 1, dtype=np.float32)
    every = jnp.asarray(np.tile(survival, (num_slots, 1)))
    cached = num_slots * context
    slots = jnp.asarray(num_slots, jnp.int32)
    load = Load(slots, jnp.ones(num_slots, jnp.float32), jnp.asarray(cached, jnp.int32))
    # The planner expects device arrays, as the decode loop passes them.
    best = most_worth(every, ladder, Economics(_on_device(costs), load))
    plain = num_slots / _seconds(costs, _first_fit(ladder, num_slots, 1), cached)
    whole = _first_fit(ladder, num_slots * (draft_length + 1), draft_length + 1)
    fixed = num_slots * (1 + float(survival.sum())) / _seconds(costs, whole, cached)
    return Speedup(float(best.rate) / plain, float(best.drafts) / num_slots, fixed / plain)


def _on_device(costs: StepCosts) -> StepCosts:
    return StepCosts(*(jnp.asarray(part, jnp.float32) for part in costs))


def _seconds(costs: StepCosts, rung: int, cached: int) -> float:
    """Returns the seconds of a step on a rung."""
    return float(costs.rungs[rung]) + float(costs.cached[rung]) * cached


def _first_fit(ladder: Sequence[Rung], rows: int, longest: int) -> int:
    """Returns the index of the cheapest rung that holds `rows` rows, `longest` of them in one slot.

    A rung for longer slots is chosen only if no other one fits: it is meant for prompts.
    """
    fits = [n for n, r in enumerate(ladder) if r.capacity >= rows and r.max_q_len >= longest]
    return min(fits, key=lambda n: (ladder[n].max_q_len, n))
