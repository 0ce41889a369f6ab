"""Which draft tokens are worth verifying: those that maximise expected tokens per second.

A step emits one token for each live slot, and one more for each accepted draft token. More rows
need a more expensive rung of the ladder. For each rung this module takes the likeliest draft tokens
that fit, adds up the tokens they are expected to yield, and divides by the cost of the step. The
rung with the highest rate wins. (TurboSpec, arXiv 2406.14066, calls this rate goodput.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.ladder import Rung
from emsjax.engine.load import Load
from emsjax.engine.step_costs import CAUTION, StepCosts


class Economics(NamedTuple):
    """The value of a step's tokens and the cost of computing them.

    Attributes:
      costs: the costs of the ladder's rungs.
      load: the load of this step.
    """

    costs: StepCosts
    load: Load


class Worth(NamedTuple):
    """The best that a step can do.

    Attributes:
      rung: int32[], index into the ladder.
      drafts: int32[], the number of draft tokens to verify on it, most valuable first.
      rate: float32[], the expected value of the tokens per second.
      promise: float32[], the rate that the rungs were compared by: `rate`, or `CAUTION` times
        `rate` for plain decoding.
    """

    rung: jax.Array
    drafts: jax.Array
    rate: jax.Array
    promise: jax.Array


def most_worth(
    survival: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics,
    drafted: jax.Array | float = 0.0,
) -> Worth:
    """Finds the rung with the most expected tokens per second.

    Args:
      survival: float32[B, k], the probability that each draft token and all before it are accepted,
        times the value of a token of its slot; 0 for entries that may not be verified.
      ladder: the rungs. A rung for drafts has a `max_q_len` of at least k + 1, a plain one of 1.
      economics: of this step and ladder; no more live slots than the largest capacity.
      drafted: the number of tokens drafted for each slot, whose cost is added to the step's.
    """
    costs, load = economics
    capacities = jnp.asarray([rung.capacity for rung in ladder], jnp.int32)
    plain = jnp.asarray([rung.max_q_len == 1 for rung in ladder])
    available = (survival > 0).sum(dtype=jnp.int32)
    room = capacities - load.live
    room = jnp.where(plain, jnp.minimum(room, 0), room)
    counts = jnp.minimum(room, available)
    # Sorted, one cumulative sum gives the expected gain of the n best draft tokens for every n.
    # Survival falls along each draft, so the n best never skip a token of a draft.
    likeliest = -jnp.sort(-survival.ravel())
    added = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(likeliest)])
    expected = load.values.sum() + added[jnp.maximum(counts, 0)]
    seconds = costs.rungs + costs.cached * load.cached.astype(jnp.float32)
    seconds += costs.draft * jnp.asarray(drafted, jnp.float32)
    # A rung without a row for every live slot is out.
    rates = jnp.where(room >= 0, expected / seconds, -1.0)
    promises = jnp.where(plain, CAUTION * rates, rates)
    rung = jnp.argmax(promises).astype(jnp.int32)
    return Worth(rung, counts[rung], rates[rung], promises[rung])


def worth_drafting(
    survival: jax.Array,
    found: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics,
    compete: bool = False,
) -> jax.Array:
    """Returns how many tokens to draft for each slot, 0 to k, before any is drafted; int32[].

    Args:
      survival: float32[B, k], as for `most_worth`, estimated before drafting.
      found: float32[B, f], the same for drafts that exist already; each slot takes the better of
        the two.
      ladder: the rungs.
      economics: of this step and ladder.
      compete: whether slots take the best of both, as branches of a tree.
    """
    lengths = jnp.arange(survival.shape[1] + 1, dtype=jnp.int32)

    def promise(length: jax.Array) -> jax.Array:
        shown = jnp.where(lengths[None, :-1] < length, survival, 0.0)
        better = (shown.sum(axis=1) > found.sum(axis=1))[:, None]
        drafts = [shown, found]
        if not compete:
            drafts = [jnp.where(better, shown, 0.0), jnp.where(better, 0.0, found)]
        drafted = length.astype(jnp.float32)
        return most_worth(jnp.concatenate(drafts, axis=1), ladder, economics, drafted).promise

    return jnp.argmax(jax.vmap(promise)(lengths)).astype(jnp.int32)
