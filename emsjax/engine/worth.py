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
from emsjax.engine.step_costs import CAUTION, Passes, StepCosts


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


def most_worth(survival: jax.Array, ladder: Sequence[Rung], economics: Economics) -> Worth:
    """Finds the rung with the most expected tokens per second.

    Args:
      survival: float32[B, k], the probability that each draft token and all before it are accepted,
        times the value of a token of its slot; 0 for entries that may not be verified.
      ladder: the rungs. A rung for drafts has a `max_q_len` of at least k + 1, a plain one of 1.
      economics: of this step and ladder; no more live slots than the largest capacity.
    """
    room = _rooms(ladder, economics)
    counts = jnp.minimum(room, (survival > 0).sum(dtype=jnp.int32))
    # Sorted, one cumulative sum gives the expected gain of the n best draft tokens for every n.
    # Survival falls along each draft, so the n best never skip a token of a draft.
    likeliest = -jnp.sort(-survival.ravel())
    added = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(likeliest)])
    rates, promises = _rates(added[jnp.maximum(counts, 0)], ladder, economics, 0)
    rung = jnp.argmax(promises).astype(jnp.int32)
    return Worth(rung, counts[rung], rates[rung], promises[rung])


def _rooms(ladder: Sequence[Rung], economics: Economics) -> jax.Array:
    """Returns how many draft tokens each rung holds, int32[R]; negative if it lacks rows."""
    capacities = jnp.asarray([rung.capacity for rung in ladder], jnp.int32)
    room = capacities - economics.load.live
    return jnp.where(_plain(ladder), jnp.minimum(room, 0), room)


def _plain(ladder: Sequence[Rung]) -> jax.Array:
    return jnp.asarray([rung.max_q_len == 1 for rung in ladder])


def _rates(
    gains: jax.Array, ladder: Sequence[Rung], economics: Economics, passes: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Returns the expected tokens per second on each rung, and what they are compared by.

    Args:
      gains: float32[R], tokens that draft tokens are expected to yield on each rung.
      ladder: the rungs.
      economics: of this step and ladder.
      passes: float32[], how many passes draft, see `Passes.price`.
    """
    costs, load = economics
    seconds = costs.rungs + costs.cached * load.cached.astype(jnp.float32)
    seconds += costs.draft * jnp.asarray(passes, jnp.float32)
    rates = (load.values.sum() + gains) / seconds
    # A rung without a row for every live slot is out.
    rates = jnp.where(_rooms(ladder, economics) >= 0, rates, -1.0)
    return rates, jnp.where(_plain(ladder), CAUTION * rates, rates)


def worth_drafting(
    survival: jax.Array,
    found: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics,
    passes: Passes,
    compete: bool = False,
) -> jax.Array:
    """Returns how many tokens to draft for each slot, 0 to k, before any is drafted; int32[].

    What a pass guesses besides the tokens that pay off is there for nothing, and drafted, too.

    Args:
      survival: float32[B, k], as for `most_worth`, estimated before drafting.
      found: float32[B, f], the same for drafts that exist already; each slot takes the better of
        the two.
      ladder: the rungs.
      economics: of this step and ladder.
      passes: in which the tokens are drafted.
      compete: whether slots take the best of both, as branches of a tree.
    """
    deepest = min(survival.shape[1], passes.depth)
    survival = survival[:, :deepest]
    lengths = jnp.arange(deepest + 1, dtype=jnp.int32)
    # [lengths, B, k] and [lengths, B, f]: what would be there to verify.
    shown = jnp.broadcast_to(
        lengths[None, None, :-1] < lengths[:, None, None], (len(lengths), *survival.shape)
    )
    offered = jnp.ones((len(lengths), *found.shape), jnp.bool)
    if not compete:
        promised = jnp.where(shown, survival[None], 0.0).sum(axis=2, keepdims=True)
        better = promised > found.sum(axis=1, keepdims=True)[None]
        shown, offered = shown & better, offered & ~better
    both = jnp.concatenate([survival, found], axis=1).ravel()
    there = jnp.concatenate([shown, offered], axis=2).reshape(len(lengths), -1)
    # Sorted once, for all lengths.
    order = jnp.argsort(-both)
    best, there = both[order], there[:, order] & (both[order] > 0)[None]
    number = jnp.cumsum(there, axis=1, dtype=jnp.int32)
    fits = there[:, None] & (number[:, None] <= _rooms(ladder, economics)[None, :, None])
    gains = jnp.where(fits, best[None, None], 0.0).sum(axis=2)

    def promise(gains: jax.Array, price: jax.Array) -> jax.Array:
        return _rates(gains, ladder, economics, price)[1].max()

    prices = jnp.asarray([passes.price(length) for length in range(deepest + 1)], jnp.float32)
    best = jnp.argmax(jax.vmap(promise)(gains, prices)).astype(jnp.int32)
    return jnp.minimum(passes.needed(best) * passes.guesses, deepest)
