"""Temperature, top-k, top-p and min-p, in the order in which `transformers` applies them.

Each filter keeps the likeliest tokens, so together they are one threshold per row. Finding it never
sorts the vocabulary. If top-k is at most 128, the threshold is found among the 128 likeliest
tokens. Otherwise it is found by halving the range of float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.vocabulary import WHOLE, Vocabulary

CANDIDATES = 128


class Filters(NamedTuple):
    """The filters of each row.

    Attributes:
      top_k: int32[W], 0 keeps all.
      top_p: float32[W], 1 keeps all.
      min_p: float32[W], 0 keeps all.
    """

    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def scale(logits: jax.Array, temperature: jax.Array, vocabulary: Vocabulary = WHOLE) -> jax.Array:
    """Subtracts each row's maximum from the logits [W, V] and divides by temperatures [W].

    Temperature 0 is treated as 1, because a greedy row does not use the result.
    """
    divisor = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    largest = vocabulary.largest(logits.max(axis=1, keepdims=True))
    return (logits - largest) / divisor


def keep(x: jax.Array, filters: Filters, vocabulary: Vocabulary = WHOLE) -> jax.Array:
    """Sets each token that is filtered out to -inf, in x [W, V] as returned by `scale`.

    Args:
      x: of all tokens, or this device's part of them.
      filters: of each row.
      vocabulary: which tokens x is of.
    """
    wanted = (filters.top_k > 0) | (filters.top_p < 1) | (filters.min_p > 0)
    return jax.lax.cond(wanted.any(), lambda: _keep(x, filters, vocabulary), lambda: x)


def _keep(x: jax.Array, filters: Filters, vocabulary: Vocabulary) -> jax.Array:
    """Filters the rows. The result of a row depends on its own filters alone, to the last bit."""
    # The barrier keeps XLA from computing exp twice. A second one may round differently and lose
    # the last token.
    weights = jax.lax.optimization_barrier(jnp.exp(x))
    nothing = jnp.zeros_like(filters.min_p)
    few = (filters.top_k > 0) & (filters.top_k <= CANDIDATES)
    many = ~few & ((filters.top_k > 0) | (filters.top_p < 1))
    found = _if_any(few, lambda: _among_candidates(weights, filters, vocabulary), nothing)
    # The second search takes what the first one found, so that a CPU's devices finish the first
    # one's exchanges before, see `docs/several-devices.md`.
    found = _if_any(many, lambda: _by_halving(weights, filters, vocabulary), found)
    threshold = jnp.maximum(found, filters.min_p)
    return jnp.where(weights >= threshold[:, None], x, -jnp.inf)


def _if_any(wanted: jax.Array, find: Callable[[], jax.Array], others: jax.Array) -> jax.Array:
    """Returns `find()`, float32[W], for the rows that want it, and `others` for the rest."""
    return jax.lax.cond(wanted.any(), lambda: jnp.where(wanted, find(), others), lambda: others)


def _among_candidates(
    weights: jax.Array, filters: Filters, vocabulary: Vocabulary = WHOLE
) -> jax.Array:
    """Returns the thresholds of top-k and top-p for rows with a top-k of 1 to 128."""
    likeliest = vocabulary.top(weights, CANDIDATES)[0]
    last = jnp.clip(filters.top_k - 1, 0, likeliest.shape[1] - 1)[:, None]
    kth = jnp.take_along_axis(likeliest, last, axis=1)
    kept = jnp.where(likeliest >= kth, likeliest, 0)
    enough = filters.top_p * kept.sum(axis=1)
    reached = jnp.cumsum(kept, axis=1) >= enough[:, None]
    place = jnp.argmax(reached, axis=1)[:, None]
    nucleus = jnp.take_along_axis(likeliest, place, axis=1)
    cut = (filters.top_p < 1) & reached.any(axis=1)
    return jnp.where(cut, jnp.maximum(kth, nucleus)[:, 0], kth[:, 0])


def _by_halving(weights: jax.Array, filters: Filters, vocabulary: Vocabulary = WHOLE) -> jax.Array:
    """Returns the thresholds of top-k and top-p for any k and p."""
    size = vocabulary.size(weights.shape[1])
    limit = jnp.where(filters.top_k > 0, jnp.minimum(filters.top_k, size), 0)

    def count(bound: jax.Array) -> jax.Array:
        here = (weights >= bound[:, None]).sum(axis=1, dtype=jnp.int32)
        return vocabulary.total(here) >= limit

    def mass(bound: jax.Array) -> jax.Array:
        return vocabulary.total(_mass(weights, bound))

    nothing = jnp.zeros_like(filters.top_p)
    kth = _if_any(limit > 0, lambda: _largest_that(count, nothing), nothing)
    enough = filters.top_p * mass(kth)
    # All tokens below (1 - p) / V weigh less than 1 - p together. Half of it allows for rounding.
    lowest = jnp.maximum(kth, 0.5 * (1 - filters.top_p) / size)
    nucleus = _largest_that(lambda bound: mass(bound) >= enough, lowest)
    return jnp.where(filters.top_p < 1, nucleus, kth)


def _mass(weights: jax.Array, bound: jax.Array) -> jax.Array:
    """Returns the total weight of the tokens of each row at or above its bound, float32[W]."""
    return jnp.where(weights >= bound[:, None], weights, 0).sum(axis=1)


def _largest_that(holds: Callable[[jax.Array], jax.Array], lowest: jax.Array) -> jax.Array:
    """Returns the largest float32 from `lowest` to 1 for which `holds` is true, for each row.

    It must be true for `lowest`. The search halves a range of integers, because positive floats
    have the same order as their bits read as integers.
    """

    def not_found(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (bounds[1] - bounds[0] > 1).any()

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        true = holds(jax.lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(true, middle, low), jnp.where(true, high, middle)

    start = jax.lax.bitcast_convert_type(lowest, jnp.int32)
    above_one = jnp.full_like(start, 0x3F800001)
    found = jax.lax.while_loop(not_found, halve, (start, above_one))[0]
    return jax.lax.bitcast_convert_type(found, jnp.float32)
