"""Temperature, top-k, top-p, min-p: in this order, as `transformers` has it.

Each keeps the likeliest tokens, so all of them together are one threshold a row. None of it sorts
the vocabulary: the likeliest 128 tokens almost always decide, and where they do not, the threshold
is found by halving the range of float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

CANDIDATES = 128


class Filters(NamedTuple):
    """What to keep, a row each.

    Attributes:
      top_k: int32[W], 0 keeps all.
      top_p: float32[W], 1 keeps all.
      min_p: float32[W], 0 keeps all.
    """

    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def scale(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits [W, V] over temperatures [W], less the largest of each row: 0 is the most.

    Temperature 0 is taken for 1: the row is greedy, and what comes of it is not used.
    """
    divisor = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    return (logits - logits.max(axis=1, keepdims=True)) / divisor


def keep(x: jax.Array, filters: Filters) -> jax.Array:
    """x [W, V] as `scale` gives it, with -inf for each token that is filtered out."""
    wanted = (filters.top_k > 0) | (filters.top_p < 1) | (filters.min_p > 0)
    lowest = jnp.full(x.shape[0], -jnp.inf, x.dtype)
    threshold = jax.lax.cond(wanted.any(), lambda: _threshold(x, filters), lambda: lowest)
    return jnp.where(x >= threshold[:, None], x, -jnp.inf)


def _threshold(x: jax.Array, filters: Filters) -> jax.Array:
    """The smallest value of each row to keep, float32[W]."""
    few, decided = _among_candidates(x, filters)
    # Row by row: which of the two finds it may depend on a row itself, never on its neighbours.
    found = jax.lax.cond(
        decided.all(), lambda: few, lambda: jnp.where(decided, few, _by_halving(x, filters))
    )
    return jnp.maximum(found, jnp.log(filters.min_p))


def _among_candidates(x: jax.Array, filters: Filters) -> tuple[jax.Array, jax.Array]:
    """The threshold of top-k and top-p, and whether the likeliest 128 tokens decide it."""
    top_k, top_p = filters.top_k, filters.top_p
    values = jax.lax.top_k(x, min(CANDIDATES, x.shape[1]))[0]
    count = values.shape[1]
    limit = jnp.where(top_k > 0, jnp.minimum(top_k, x.shape[1]), 0)
    last = jnp.take_along_axis(values, jnp.clip(limit - 1, 0, count - 1)[:, None], axis=1)
    kth = jnp.where(limit > 0, last[:, 0], -jnp.inf)
    weights = jnp.where(values >= kth[:, None], jnp.exp(values), 0)
    total = jnp.where(limit > 0, weights.sum(axis=1), jnp.exp(x).sum(axis=1))
    reached = jnp.cumsum(weights, axis=1) >= (top_p * total)[:, None]
    place = jnp.argmax(reached, axis=1)[:, None]
    nucleus = jnp.where(top_p < 1, jnp.take_along_axis(values, place, axis=1)[:, 0], -jnp.inf)
    decided = (limit <= count) & ((top_p >= 1) | reached.any(axis=1))
    return jnp.maximum(kth, nucleus), decided


def _by_halving(x: jax.Array, filters: Filters) -> jax.Array:
    """The same threshold for any k and p."""
    limit = jnp.minimum(filters.top_k, x.shape[1])
    ones = jnp.ones_like(x)
    kth = jnp.where(limit > 0, _largest_with(x, ones, limit.astype(x.dtype)), -jnp.inf)
    weights = jnp.where(x >= kth[:, None], jnp.exp(x), 0)
    nucleus = _largest_with(x, weights, filters.top_p * weights.sum(axis=1))
    return jnp.maximum(kth, jnp.where(filters.top_p < 1, nucleus, -jnp.inf))


def _largest_with(x: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """The largest value v of each row so that tokens of at least v together weigh `wanted`.

    x is at most 0: the bits of its size, read as an integer, fall as it rises.
    """
    order = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)

    def enough(bound: jax.Array) -> jax.Array:
        return jnp.where(order <= bound[:, None], weights, 0).sum(axis=1) >= wanted

    return -jax.lax.bitcast_convert_type(_first_true(enough, x.shape[0]), jnp.float32)


def _first_true(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The smallest int32[W] from 0 to infinity's bits on for which `holds`, if any below does."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        true = holds(middle)
        return jnp.where(true, low, middle + 1), jnp.where(true, middle, high)

    infinity = jnp.full(rows, 0x7F800000, jnp.int32)
    return jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(infinity), infinity))[1]
