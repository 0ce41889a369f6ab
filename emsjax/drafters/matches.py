"""Where a text's last tokens occurred before: the text is compared with itself in every step.

Without an index there is nothing to keep, and no occurrence is forgotten. A comparison of 16 slots
of 4,096 tokens is a million operations, which takes a fraction of a millisecond.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.rows import NO_TOKEN

# The most tokens over which a match is measured.
LONGEST_MATCH = 16


class Matches(NamedTuple):
    """Earlier occurrences of the last tokens of each slot's text, best first.

    Attributes:
      ends: int32[B, M], the position at which an occurrence ends.
      lens: int32[B, M], the number of tokens that it shares with the end of the text, up to
        `LONGEST_MATCH`; 0 if there are no more occurrences.
    """

    ends: jax.Array
    lens: jax.Array


def find(tokens: jax.Array, lens: jax.Array, count: int, longest: int, shortest: int) -> Matches:
    """Finds the longest matches, and among equally long ones the latest.

    Args:
      tokens: int32[B, S].
      lens: int32[B], the length of each text.
      count: M, how many matches to find.
      longest: matches of this many tokens or more are equally good.
      shortest: the fewest tokens of a match.
    """
    capacity = tokens.shape[1]
    places = jnp.arange(capacity, dtype=jnp.int32)[None]
    matched = _matched(tokens, lens)
    good = jnp.where(matched >= shortest, jnp.minimum(matched, longest), 0)
    # A number for each place, all of them different, of which the best match has the largest.
    worth = jnp.where(good > 0, good * capacity + places, 0)
    best = []
    for _ in range(count):
        most = worth.max(axis=1, keepdims=True)
        best.append(most)
        worth = jnp.where(worth == most, 0, worth)
    found = jnp.concatenate(best, axis=1)
    ends = found % capacity
    return Matches(ends, jnp.where(found > 0, jnp.take_along_axis(matched, ends, axis=1), 0))


def _matched(tokens: jax.Array, lens: jax.Array) -> jax.Array:
    """Counts the tokens up to each place that equal the last ones of the text, int32[B, S]."""
    capacity = tokens.shape[1]
    places = jnp.arange(capacity, dtype=jnp.int32)[None]
    last = lens[:, None] - 1
    before = jnp.pad(tokens, ((0, 0), (LONGEST_MATCH, 0)), constant_values=NO_TOKEN)
    equal = places < last
    matched = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(LONGEST_MATCH):
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        first = LONGEST_MATCH - back
        equal &= (before[:, first : first + capacity] == wanted) & (places >= back)
        matched += equal.astype(jnp.int32)
    return matched
