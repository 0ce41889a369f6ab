"""Packing the rows of all slots into one flat buffer, without padding between them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PackedBatch(NamedTuple):
    """The rows of one step, slot after slot: what the model's forward pass takes.

    Attributes:
      tokens: int32[T]; rows at or past `cu_q_lens[B]` are unused.
      positions: int32[T], place of each token in its sample.
      slot_ids: int32[T], slot of each row; B for an unused row.
      cu_q_lens: int32[B+1], where each slot's rows start; a slot may have none.
      kv_lens: int32[B], tokens of each slot in the cache once this step's are written.
      ancestors: uint32[T] or None: bit j says that the row attends to its slot's j-th row of
        this step (token trees); None where each slot's rows are a chain.
      holes: bool[B, S] or None: places of the cache before `kv_lens` that hold no token.
    """

    tokens: jax.Array
    positions: jax.Array
    slot_ids: jax.Array
    cu_q_lens: jax.Array
    kv_lens: jax.Array
    ancestors: jax.Array | None = None
    holes: jax.Array | None = None


def pack(tokens: jax.Array, starts: jax.Array, q_lens: jax.Array, capacity: int) -> PackedBatch:
    """Packs `q_lens[b]` tokens of each slot, from position `starts[b]` on.

    Args:
      tokens: int32[B, S], the tokens of each slot, with guesses behind the known ones.
      starts: int32[B], position of each slot's first row.
      q_lens: int32[B], rows of each slot; their sum is at most `capacity`.
      capacity: T.
    """
    num_slots = q_lens.shape[0]
    cu_q_lens = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(q_lens, dtype=jnp.int32)])
    rows = jnp.arange(capacity, dtype=jnp.int32)
    # Comparing all is one small operation; a binary search would be a loop of many.
    found = jnp.searchsorted(cu_q_lens[1:], rows, side="right", method="compare_all")
    slot_ids = found.astype(jnp.int32)
    slot = jnp.minimum(slot_ids, num_slots - 1)
    positions = jnp.where(slot_ids < num_slots, starts[slot] + rows - cu_q_lens[slot], 0)
    return PackedBatch(
        tokens=tokens[slot, positions],
        positions=positions,
        slot_ids=slot_ids,
        cu_q_lens=cu_q_lens,
        kv_lens=starts + q_lens,
    )
