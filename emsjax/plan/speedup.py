"""The expected speedup over plain decoding, given one acceptance probability for all tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emsjax.engine.ladder import Rung
from emsjax.engine.step_costs import CAUTION, StepCosts, without_prompts


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
    survival = acceptance ** np.arange(1, draft_length + 1, dtype=np.float64)
    cached = num_slots * context
    plain = num_slots / plain_seconds(costs, ladder, num_slots=num_slots, context=context)
    whole = _first_fit(ladder, num_slots * (draft_length + 1), draft_length + 1)
    fixed = num_slots * (1 + float(survival.sum())) / _seconds(costs, whole, cached)
    planned, drafts = _planned(costs, ladder, num_slots, cached, survival)
    return Speedup(planned / plain, drafts / num_slots, fixed / plain)


def plain_seconds(
    costs: StepCosts, ladder: Sequence[Rung], *, num_slots: int, context: int
) -> float:
    """Returns the seconds of a step without drafts, see `expected_speedup`."""
    return _seconds(costs, _first_fit(ladder, num_slots, 1), num_slots * context)


def _planned(
    costs: StepCosts, ladder: Sequence[Rung], num_slots: int, cached: int, survival: np.ndarray
) -> tuple[float, int]:
    """Returns the tokens per second of the planner's step, and the draft tokens that it verifies.

    This is `emsjax.engine.worth.most_worth` for slots that are all alike. That function runs on
    the device, and jax would compile it for each ladder, which takes seconds.
    """
    available = num_slots * int((survival > 0).sum())
    gain = np.concatenate([[0.0], np.cumsum(np.repeat(survival, num_slots))])
    found = []
    for number, rung in enumerate(ladder):
        room = rung.capacity - num_slots
        if room < 0:
            continue  # no row for every slot
        plain = rung.max_q_len == 1
        drafts = 0 if plain else min(room, available)
        rate = (num_slots + float(gain[drafts])) / _seconds(costs, number, cached)
        found.append((CAUTION * rate if plain else rate, rate, drafts))
    _, rate, drafts = max(found, key=lambda each: each[0])
    return rate, drafts


def _seconds(costs: StepCosts, rung: int, cached: int) -> float:
    """Returns the seconds of a step on a rung."""
    return float(costs.rungs[rung]) + float(costs.cached[rung]) * cached


def _first_fit(ladder: Sequence[Rung], rows: int, longest: int) -> int:
    """Returns the index of the cheapest rung that holds `rows` rows, `longest` of them in one slot.

    A rung for longer slots is chosen only if no other one fits: it is meant for prompts.
    """
    fits = [n for n, r in enumerate(ladder) if r.capacity >= rows and r.max_q_len >= longest]
    return min(fits, key=lambda n: (ladder[n].max_q_len, n))
