"""Where each n-gram of a text was seen last: found and kept up in constant work a step.

A table for each n: the hash of an n-gram says where it last ended. Two n-grams may share a place,
and then the earlier one is forgotten; what is found is compared with the text, never trusted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Tokens entered at a time, and how far back a match is measured.
CHUNK = 16
LONGEST_MATCH = 16
_FACTOR, _MIXER = 0x9E3779B1, 0x85EBCA6B


class NgramIndex(NamedTuple):
    """Of the text in each slot.

    Attributes:
      ends: int32[B, N, H], for each n where an n-gram of each hash last ended; -1 for nowhere.
      entered: int32[B], n-grams that end before this place are in it.
    """

    ends: jax.Array
    entered: jax.Array


def empty_index(num_slots: int, orders: int, size: int) -> NgramIndex:
    """An index of nothing, for so many different n, of `size` places each (a power of two)."""
    ends = jnp.full((num_slots, orders, size), -1, jnp.int32)
    return NgramIndex(ends, jnp.zeros(num_slots, jnp.int32))


def clear(index: NgramIndex, slot: jax.Array) -> NgramIndex:
    """The index without the text of one slot."""
    return NgramIndex(index.ends.at[slot].set(-1), index.entered.at[slot].set(0))


def enter(
    index: NgramIndex, tokens: jax.Array, until: jax.Array, orders: tuple[int, ...]
) -> NgramIndex:
    """With all n-grams in it that end before `until`: a few after a step, many after a prompt.

    Args:
      index: so far.
      tokens: int32[B, S].
      until: int32[B].
      orders: the n of each table.
    """

    def behind(index: NgramIndex) -> jax.Array:
        return (index.entered < until).any()

    def enter_chunk(index: NgramIndex) -> NgramIndex:
        ends = index.entered[:, None] + jnp.arange(CHUNK, dtype=jnp.int32)[None]
        grown = index.ends
        slots = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        for number, order in enumerate(orders):
            places = hash_ngram(tokens, ends, order, grown.shape[2])
            there = (ends < until[:, None]) & (ends >= order - 1)
            places = jnp.where(there, places, grown.shape[2])
            # The latest of equal ones stays.
            grown = grown.at[slots, number, places].max(ends, mode="drop")
        return NgramIndex(grown, jnp.maximum(index.entered, jnp.minimum(ends[:, -1] + 1, until)))

    return jax.lax.while_loop(behind, enter_chunk, index)


def hash_ngram(tokens: jax.Array, ends: jax.Array, order: int, size: int) -> jax.Array:
    """Places int32[B, n] of the n-grams of tokens int32[B, S] that end at `ends` int32[B, n]."""
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
    """Where the text's last tokens were seen before: of the longest n, the latest place.

    Args:
      index: of all n-grams that end before the last token.
      tokens: int32[B, S].
      lens: int32[B].
      orders: the n of each table, longest last.

    Returns:
      Where the earlier occurrence ends, and how many tokens it shares with the end of the text, 0
      to `LONGEST_MATCH`; int32[B] each.
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
    """How many tokens up to `end` equal those up to `last`, int32[B]."""
    back = jnp.arange(LONGEST_MATCH, dtype=jnp.int32)[None]
    here, there = (
        jnp.take_along_axis(tokens, jnp.maximum(at[:, None] - back, 0), axis=1)
        for at in (last, end)
    )
    equal = (here == there) & (end[:, None] >= back)
    return jnp.cumprod(equal, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)
