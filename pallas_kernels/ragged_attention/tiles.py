"""Cutting packed rows into tiles that each belong to one slot: pure bookkeeping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class QueryTiles(NamedTuple):
    """Tiles of at most `tile_rows` consecutive rows of one slot, in packed order.

    Invariants: every used row is in exactly one tile; a tile never spans two slots; tiles past
    the last used one have `num_rows` 0.

    Attributes:
      slot: int32[tiles], the slot whose cache the tile reads (any valid slot where unused).
      first_row: int32[tiles], packed index of the tile's first row.
      num_rows: int32[tiles], rows of the tile that are used.
      of_row: int32[T], the tile that each packed row is in.
      offset_of_row: int32[T], the row's place in that tile.
    """

    slot: jax.Array
    first_row: jax.Array
    num_rows: jax.Array
    of_row: jax.Array
    offset_of_row: jax.Array


def tile_count(num_rows: int, num_slots: int, max_q_len: int, tile_rows: int) -> int:
    """The most tiles that T rows of B slots, at most `max_q_len` a slot, can need."""
    if max_q_len <= tile_rows:
        return min(num_rows, num_slots)
    return min(num_rows, num_slots + num_rows // tile_rows)


def query_tiles(cu_q_lens: jax.Array, num_rows: int, max_q_len: int, tile_rows: int) -> QueryTiles:
    """Cuts the rows described by `cu_q_lens` int32[B+1] into tiles."""
    num_slots = cu_q_lens.shape[0] - 1
    starts = cu_q_lens[:-1]
    tiles_of_slot = -(-(cu_q_lens[1:] - starts) // tile_rows)
    tile_ends = jnp.cumsum(tiles_of_slot, dtype=jnp.int32)
    tile_starts = tile_ends - tiles_of_slot

    tiles = jnp.arange(tile_count(num_rows, num_slots, max_q_len, tile_rows), dtype=jnp.int32)
    slot = _owner(tile_ends, tiles)
    first_row = starts[slot] + (tiles - tile_starts[slot]) * tile_rows
    rows_left = jnp.where(tiles < tile_ends[-1], cu_q_lens[slot + 1] - first_row, 0)

    rows = jnp.arange(num_rows, dtype=jnp.int32)
    slot_of_row = _owner(cu_q_lens[1:], rows)
    row_in_slot = rows - starts[slot_of_row]
    return QueryTiles(
        slot=slot,
        first_row=first_row,
        num_rows=jnp.clip(rows_left, 0, tile_rows),
        of_row=jnp.minimum(tile_starts[slot_of_row] + row_in_slot // tile_rows, tiles[-1]),
        offset_of_row=row_in_slot % tile_rows,
    )


def _owner(ends: jax.Array, items: jax.Array) -> jax.Array:
    """Which of the consecutive ranges ending at `ends` holds each item, clipped to the last."""
    owner = jnp.searchsorted(ends, items, side="right").astype(jnp.int32)
    return jnp.minimum(owner, ends.shape[0] - 1)
