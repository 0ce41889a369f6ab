"""Holes in an aligned cache: positions without a token's K/V, between positions that have one.

Only the padded methods make holes, to compare EMS-SD with. They keep the caches of all slots
growing by the same length, so a slot that accepted fewer tokens than another skips the difference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch


class Holes(NamedTuple):
    """The holes of all slots.

    Attributes:
      at: bool[B, S], which positions of the cache are holes.
      counts: int32[B], holes in each slot. The K/V of its next tokens lie this many places after
        their positions.
    """

    at: jax.Array
    counts: jax.Array


def no_holes(num_slots: int, capacity: int) -> Holes:
    """Returns B slots of S positions without holes."""
    at = jnp.zeros((num_slots, capacity), jnp.bool)
    return Holes(at, jnp.zeros(num_slots, jnp.int32))


def fill(holes: Holes, slot: jax.Array) -> Holes:
    """Returns the holes without those of one slot, int32[]."""
    return Holes(holes.at.at[slot].set(False), holes.counts.at[slot].set(0))


def after_holes(batch: PackedBatch, holes: Holes) -> PackedBatch:
    """Moves the rows' places in the cache past the holes of their slots.

    The rows' `positions` stay those of the tokens, as the rotary embedding needs them.
    """
    return batch._replace(kv_lens=batch.kv_lens + holes.counts, holes=holes.at)


def align(
    holes: Holes, kv_lens: jax.Array, grown: jax.Array, decoding: jax.Array, max_lens: jax.Array
) -> Holes:
    """Adds holes so that all decoding slots' caches grow by as much as the one that grew most.

    A slot gets fewer holes if its cache could not hold the rest of its text otherwise: less padding
    is better than a text that is cut short.

    Args:
      holes: before the step.
      kv_lens: int32[B], tokens with K/V after the step.
      grown: int32[B], by how many tokens each slot grew in the step.
      decoding: bool[B], the slots that grow together.
      max_lens: int32[B], the most tokens that each slot may reach.
    """
    places = jnp.arange(holes.at.shape[1], dtype=jnp.int32)[None]
    furthest = jnp.where(decoding, grown, 0).max()
    room = jnp.maximum(holes.at.shape[1] - max_lens - holes.counts, 0)
    added = jnp.where(decoding, jnp.minimum(furthest - grown, room), 0)
    # New holes follow the tokens that are in the cache after this step.
    start = (kv_lens + holes.counts)[:, None]
    new = (places >= start) & (places < start + added[:, None])
    return Holes(holes.at | new, holes.counts + added)
