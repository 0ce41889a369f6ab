"""An index of where each n-gram of a text was seen last, with constant work per step.

Each n has a table from the hash of an n-gram to the position where that n-gram last ended. If two
n-grams share an entry, the earlier one is forgotten. Matches are compared with the text and never
trusted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# The number of tokens entered at a time.
CHUNK = 16
# The most tokens over which a match is measured.
LONGEST_MATCH = 16
# Odd multipliers that spread hashes over the table.
_FACTOR, _MIXER = 0x9E3779B1, 0x85EBCA6B


class NgramIndex(NamedTuple):
    """The index of the text in each slot.

    Attributes:
      ends: int32[B, N, H], for each n the position where an n-gram with each hash last ended; -1
        for none.
      entered: int32[B], the index contains the n-grams that end before this position.
    """

    ends: jax.Array
    entered: jax.Array


def empty_index(num_slots: int, orders: int, size: int) -> NgramIndex:
    """Returns an empty index with a table of `size` entries, a power of two, for each order n."""
    ends = jnp.full((num_slots, orders, size), -1, jnp.int32)
    return NgramIndex(ends, jnp.zeros(num_slots, jnp.int32))


def clear(index: NgramIndex, slot: jax.Array) -> NgramIndex:
    """Returns the index without the text of one slot."""
    return NgramIndex(index.ends.at[slot].set(-1), index.entered.at[slot].set(0))


def enter(
    index: NgramIndex, tokens: jax.Array, until: jax.Array, orders: tuple[int, ...]
) -> NgramIndex:
    """Enters all n-grams that end before `until`: a few after a step, many after a prompt.

    Args:
      index: the index so far.
      tokens: int32[B, S].
      until: int32[B].
      orders: the n of each table.
    """

    def is_incomplete(index: NgramIndex) -> jax.Array:
        return (index.entered < until).any()

    def enter_chunk(index: NgramIndex) -> NgramIndex:
        ends = index.entered[:, None] + jnp.arange(CHUNK, dtype=jnp.int32)[None]
        grown = index.ends
        slots = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        for number, order in enumerate(orders):
            places = hash_ngram(tokens, ends, order, grown.shape[2])
            there = (ends < until[:, None]) & (ends >= order - 1)
            places = jnp.where(there, places, grown.shape[2])
            # Among equal n-grams, the latest wins.
            grown = grown.at[slots, number, places].max(ends, mode="drop")
        return NgramIndex(grown, jnp.maximum(index.entered, jnp.minimum(ends[:, -1] + 1, until)))

    return jax.lax.while_loop(is_incomplete, enter_chunk, index)


def hash_ngram(tokens: jax.Array, ends: jax.Array, order: int, size: int) -> jax.Array:
    """Returns the table entry of each n-gram that ends at `ends` int32[B, n]; int32[B, n].

    Args:
      tokens: int32[B, S].
      ends: int32[B, n].
      order: the n of the n-grams.
      size: entries of the table, a power of two.
    """
    total = jnp.zeros(ends.shape, jnp.uint32)
    for back in range(order):
        token = jnp.take_along_axis(tokens, jnp.maximum(ends - back, 0), axis=1)
        total = total * jnp.uint32(_FACTOR) + token.astype(jnp.uint32) + jnp.uint32(1)
    mixed = (total ^ (total >> jnp.uint32(15))) * jnp.uint32(_MIXER)
    mixed = mixed ^ (mixed >> jnp.uint32(13))
    return (mixed & jnp.uint32(size - 1)).astype(jnp.int32)


def find(
    index: NgramIndex, tokens: jax.Array, lens: jax.Array, orders: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Finds where the text's last tokens occurred before: the latest place for the longest n.

    Args:
      index: of all n-grams that end before the last token.
      tokens: int32[B, S].
      lens: int32[B].
      orders: the n of each table, longest last.

    Returns:
      The position where the earlier occurrence ends, and the number of tokens that it shares with
      the end of the text, 0 to `LONGEST_MATCH`; int32[B] each.
    """
    last = jnp.maximum(lens - 1, 0)
    best, matched = jnp.zeros_like(lens), jnp.zeros_like(lens)
    slots = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    for number, order in enumerate(orders):
        place = hash_ngram(tokens, last[:, None], order, index.ends.shape[2])[:, 0]
        end = index.ends[slots, number, place]
        length = jnp.where(end >= 0, _shared(tokens, end, last), 0)
        found = (length >= order) & (lens > order)
        best, matched = jnp.where(found, end, best), jnp.where(found, length, matched)
    return best, matched


def _shared(tokens: jax.Array, end: jax.Array, last: jax.Array) -> jax.Array:
    """Counts the tokens up to `end` that equal those up to `last`, int32[B]."""
    back = jnp.arange(LONGEST_MATCH, dtype=jnp.int32)[None]
    here, there = (
        jnp.take_along_axis(tokens, jnp.maximum(at[:, None] - back, 0), axis=1)
        for at in (last, end)
    )
    equal = (here == there) & (end[:, None] >= back)
    return jnp.cumprod(equal, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)
