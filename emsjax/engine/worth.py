"""Which draft tokens are worth verifying: as many as give most expected tokens a second.

A step emits one token a live slot, and each draft token that is accepted besides. More rows need a
dearer rung of the ladder. So for each rung: the likeliest draft tokens that fit it, what they are
expected to add, and what the step costs. (TurboSpec, arXiv 2406.14066, calls the ratio goodput.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.ladder import Rung, for_drafts
from emsjax.engine.load import Load

# How much more verifying has to promise than plain decoding gives. The best of several estimates is
# more often one that is too high than one that is too low: promises were 8 to 18% above what came
# of them (SmolLM2, 8 and 16 slots, summaries, on a CPU).
CAUTION = 1.15


class StepCosts(NamedTuple):
    """What a step costs, in seconds.

    Attributes:
      rungs: float32[R], on each rung of the ladder, were there nothing in the cache.
      cached: float32[R], more for each token's place that is read of the cache, in whole blocks.
      draft: float32[], drafting one token for every slot; 0 where drafts cost next to nothing.
    """

    rungs: jax.Array | np.ndarray
    cached: jax.Array | np.ndarray
    draft: jax.Array | np.floating


def without_prompts(costs: StepCosts, ladder: Sequence[Rung], draft_length: int) -> StepCosts:
    """The same where rungs that are for prompts only are infinitely dear: as they are measured."""
    rungs = np.where(for_drafts(ladder, draft_length), np.asarray(costs.rungs), np.float32(np.inf))
    return costs._replace(rungs=rungs)


class Economics(NamedTuple):
    """What the tokens of a step are worth, and what computing them costs.

    Attributes:
      costs: of the ladder's rungs.
      load: of this step.
    """

    costs: StepCosts
    load: Load


class Worth(NamedTuple):
    """The best a step can do.

    Attributes:
      rung: int32[], index into the ladder.
      drafts: int32[], how many draft tokens go with it, those worth most.
      rate: float32[], expected worth of tokens a second.
      promise: float32[], the same, but of plain decoding `CAUTION` times that.
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
    """The rung with most expected tokens a second.

    Args:
      survival: float32[B, k], how likely each draft token and all before it are to be accepted,
        times what a token of its slot is worth; 0 for what may not be verified.
      ladder: rungs; a draft rung has `max_q_len` of k + 1 at least, a plain one of 1.
      economics: of this step and ladder; no more live slots than the largest capacity.
      drafted: tokens drafted for each slot, to be paid for with the step.
    """
    costs, load = economics
    capacities = jnp.asarray([rung.capacity for rung in ladder], jnp.int32)
    plain = jnp.asarray([rung.max_q_len == 1 for rung in ladder])
    some = (survival > 0).sum(dtype=jnp.int32)
    room = capacities - load.live
    room = jnp.where(plain, jnp.minimum(room, 0), room)
    counts = jnp.minimum(room, some)
    likeliest = -jnp.sort(-survival.ravel())
    added = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(likeliest)])
    expected = load.values.sum() + added[jnp.maximum(counts, 0)]
    seconds = costs.rungs + costs.cached * load.cached.astype(jnp.float32)
    seconds += costs.draft * jnp.asarray(drafted, jnp.float32)
    rates = jnp.where(room >= 0, expected / seconds, -1.0)
    promises = jnp.where(plain, CAUTION * rates, rates)
    rung = jnp.argmax(promises).astype(jnp.int32)
    return Worth(rung, counts[rung], rates[rung], promises[rung])


def worth_drafting(
    survival: jax.Array,
    found: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics,
) -> jax.Array:
    """How many tokens to draft for each slot, 0 to k, before any is drafted; int32[].

    Args:
      survival: float32[B, k], as for `most_worth`, as far as it can be told by then.
      found: float32[B, f], the same for drafts that are there already; a slot takes the better one.
      ladder: rungs.
      economics: of this step and ladder.
    """
    lengths = jnp.arange(survival.shape[1] + 1, dtype=jnp.int32)

    def promise(length: jax.Array) -> jax.Array:
        shown = jnp.where(lengths[None, :-1] < length, survival, 0.0)
        better = (shown.sum(axis=1) > found.sum(axis=1))[:, None]
        some = [jnp.where(better, shown, 0.0), jnp.where(better, 0.0, found)]
        drafted = length.astype(jnp.float32)
        return most_worth(jnp.concatenate(some, axis=1), ladder, economics, drafted).promise

    return jnp.argmax(jax.vmap(promise)(lengths)).astype(jnp.int32)
