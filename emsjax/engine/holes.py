"""Holes in an aligned cache: places that no token's K/V is at, between places where it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch


class Holes(NamedTuple):
    """Where they are.

    Attributes:
      at: bool[B, S], by place in the cache.
      counts: int32[B], in each slot; a token's K/V lies that many places behind its position, for
        the tokens still to come.
    """

    at: jax.Array
    counts: jax.Array


def no_holes(num_slots: int, capacity: int) -> Holes:
    """B slots of S places without any."""
    at = jnp.zeros((num_slots, capacity), jnp.bool)
    return Holes(at, jnp.zeros(num_slots, jnp.int32))


def fill(holes: Holes, slot: jax.Array) -> Holes:
    """Without those of a slot int32[]."""
    return Holes(holes.at.at[slot].set(False), holes.counts.at[slot].set(0))


def behind_holes(batch: PackedBatch, holes: Holes) -> PackedBatch:
    """The rows where the cache has room for them; rotary positions stay those of the tokens."""
    return batch._replace(kv_lens=batch.kv_lens + holes.counts, holes=holes.at)


def align(
    holes: Holes, kv_lens: jax.Array, grown: jax.Array, decoding: jax.Array, max_lens: jax.Array
) -> Holes:
    """Moves all decoding slots on by as much as the one that grew most.

    A slot whose cache could then not hold the rest of its text moves on by less: it is spared the
    padding rather than cut short.

    Args:
      holes: before the step.
      kv_lens: int32[B], tokens with K/V after the step.
      grown: int32[B], how many of them came with it.
      decoding: bool[B], the slots that move together.
      max_lens: int32[B], tokens that each slot may come to have.
    """
    places = jnp.arange(holes.at.shape[1], dtype=jnp.int32)[None]
    furthest = jnp.where(decoding, grown, 0).max()
    room = jnp.maximum(holes.at.shape[1] - max_lens - holes.counts, 0)
    added = jnp.where(decoding, jnp.minimum(furthest - grown, room), 0)
    start = (kv_lens + holes.counts)[:, None]
    new = (places >= start) & (places < start + added[:, None])
    return Holes(holes.at | new, holes.counts + added)
