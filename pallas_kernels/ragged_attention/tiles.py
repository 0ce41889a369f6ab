"""Cuts packed rows into tiles, each of which belongs to one slot."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class QueryTiles(NamedTuple):
    """Tiles of at most `tile_rows` consecutive rows of one slot, in packed order.

    Every used row is in exactly one tile, and a tile never spans two slots. Unused tiles come last
    and have `num_rows` 0.

    Attributes:
      slot: int32[tiles], the slot whose cache the tile reads; an arbitrary slot in unused tiles.
      first_row: int32[tiles], packed index of the tile's first row.
      num_rows: int32[tiles], used rows of the tile.
      rows: int32[tiles, tile_rows], packed indices of the tile's rows. Indices at or after
        `num_rows` are valid but arbitrary.
      place_of_row: int32[T], index of each packed row in the tiles laid end to end, which has
        `tiles * tile_rows` rows.
      used: bool[T], whether the packed row belongs to a slot.
    """

    slot: jax.Array
    first_row: jax.Array
    num_rows: jax.Array
    rows: jax.Array
    place_of_row: jax.Array
    used: jax.Array


def tile_count(num_rows: int, num_slots: int, max_q_len: int, tile_rows: int) -> int:
    """Returns a bound on the tiles of T rows in B slots with at most `max_q_len` rows each."""
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
    offsets = jnp.arange(tile_rows, dtype=jnp.int32)[None]
    rows_left = jnp.where(tiles < tile_ends[-1], cu_q_lens[slot + 1] - first_row, 0)

    rows = jnp.arange(num_rows, dtype=jnp.int32)
    slot_of_row = _owner(cu_q_lens[1:], rows)
    row_in_slot = rows - starts[slot_of_row]
    # Unused rows are looked up like all others, so their indices must be valid too.
    tile_of_row = jnp.minimum(tile_starts[slot_of_row] + row_in_slot // tile_rows, tiles[-1])
    return QueryTiles(
        slot=slot,
        first_row=first_row,
        num_rows=jnp.clip(rows_left, 0, tile_rows),
        rows=jnp.minimum(first_row[:, None] + offsets, num_rows - 1),
        place_of_row=tile_of_row * tile_rows + row_in_slot % tile_rows,
        used=rows < cu_q_lens[-1],
    )


class TileFacts(NamedTuple):
    """The slot of each tile and the cache positions of its rows, int32[tiles] each.

    Attributes:
      slot: the slot whose cache the tile reads.
      q_start: position of the slot's first row of this step; of a token tree, of its first row.
      row_start: position of the tile's first row.
      kv_end: position after the tile's last row; 0 for an unused tile.
    """

    slot: Any
    q_start: Any
    row_start: Any
    kv_end: Any


def tile_facts(
    tiles: QueryTiles, cu_q_lens: jax.Array, kv_lens: jax.Array, tree_starts: jax.Array | None
) -> TileFacts:
    """Returns the slot and cache positions of each tile, which the kernels read."""
    first_of_slot = cu_q_lens[tiles.slot]
    q_start = kv_lens[tiles.slot] - (cu_q_lens[tiles.slot + 1] - first_of_slot)
    row_start = q_start + tiles.first_row - first_of_slot
    kv_end = jnp.where(tiles.num_rows > 0, row_start + tiles.num_rows, 0)
    first = q_start if tree_starts is None else tree_starts[tiles.slot]
    return TileFacts(tiles.slot, first, row_start, kv_end)


def lag(ancestors: Any, place: Any) -> Any:
    """Returns how many rows of its slot before a row of a token tree are not its ancestors.

    So far its place in the cache lies past its position in the text.

    Args:
      ancestors: int32[...], ancestor masks. A mask with all bits belongs to a chain.
      place: int32[...], which of its slot's rows each one is.
    """
    # `population_count` in operations that every kernel language has.
    shifted = jax.lax.shift_right_logical
    pairs = ancestors - (shifted(ancestors, 1) & 0x55555555)
    fours = (pairs & 0x33333333) + (shifted(pairs, 2) & 0x33333333)
    bytes_ = (fours + shifted(fours, 4)) & 0x0F0F0F0F
    count = shifted(bytes_ * 0x01010101, 24)
    return jnp.where(ancestors == -1, 0, place + 1 - count)


def least_position(facts: TileFacts, tile: Any, tree: bool) -> Any:
    """Returns a bound on the positions of a tile's rows, from below.

    Args:
      facts: of all tiles.
      tile: index of the tile.
      tree: whether the rows have ancestor masks, so that their `lag` is up to 31.
    """
    first = facts.row_start[tile]
    return jnp.maximum(facts.q_start[tile], first - 31) if tree else first


class Walk(NamedTuple):
    """The blocks of a slot's cache that a tile reads, in order.

    They are those of the sink tokens, then all from the first one in the window on.

    Attributes:
      start: number of the first step.
      end: number after the last step.
      jump: number of the step that reads the first block in the window; None without sink tokens.
      begin: the block that the first step reads if there are sink tokens.
    """

    start: Any
    end: Any
    jump: Any = None
    begin: Any = 0

    def block(self, step: Any) -> Any:
        """Returns the block that a step reads. Steps from `jump` on have their block's number."""
        if self.jump is None:
            return step
        return jnp.where(step < self.jump, step - self.start + self.begin, step)


def walk(first: Any, end: Any, sink_blocks: Any = None, begin: Any = 0) -> Walk:
    """Returns how a tile walks over the blocks of a slot, or over those of a section of it.

    Args:
      first: the first block in the window, or 0.
      end: the block after the last one.
      sink_blocks: how many blocks of the slot hold sink tokens; None for none.
      begin: the first block of the section.
    """
    first = jnp.maximum(first, begin).astype(jnp.int32)
    if sink_blocks is None:
        return Walk(first, end)
    first = jnp.minimum(first, jnp.maximum(end, begin))
    start = jnp.maximum(first - jnp.maximum(sink_blocks - begin, 0), begin)
    return Walk(start, end, first, begin)


def window_scalars(window: Any, sink_tokens: Any) -> jax.Array | None:
    """Returns what kernels read of both: int32[1], or [2] with sink tokens; None for no window."""
    if window is None:
        return None
    given = [window] if sink_tokens is None else [window, sink_tokens]
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in given])


class Window(NamedTuple):
    """A sliding window.

    Attributes:
      tokens: its length.
      sink_tokens: the first tokens of a slot, which it does not hide; None for none.
    """

    tokens: Any
    sink_tokens: Any = None

    @classmethod
    def read(cls, scalars: Any) -> "Window | None":
        """Reads what `window_scalars` returned; None if that is None."""
        return None if scalars is None else cls(*(scalars[i] for i in range(scalars.shape[0])))

    def shows(self, column: Any, row: Any) -> Any:
        """Returns whether the window shows the token at `column` to the row at `row`."""
        near = column > row - self.tokens
        return near if self.sink_tokens is None else near | (column < self.sink_tokens)

    def walk(self, least: Any, end: Any, block: int, begin: Any = 0) -> Walk:
        """Returns how a tile walks over blocks.

        Args:
          least: bound on the positions of its rows, from below.
          end: see `walk`.
          block: tokens of a block.
          begin: see `walk`.
        """
        sinks = self.sink_tokens
        sink_blocks = None if sinks is None else (sinks + block - 1) // block
        return walk(jnp.maximum(least - self.tokens + 1, 0) // block, end, sink_blocks, begin)


class Prepared(NamedTuple):
    """Everything that attention derives from lengths, shared by all layers of a step.

    Attributes:
      tiles: the tiles that the packed rows are cut into.
      facts: slots and cache positions of the tiles.
      ancestors: ancestor masks of the tiles' rows in the backend's own layout; None for chains.
      holes: holes in the backend's own layout; None if there are none.
    """

    tiles: QueryTiles
    facts: TileFacts
    ancestors: jax.Array | None
    holes: jax.Array | None


def cut_rows(packed: jax.Array, tiles: QueryTiles, height: int) -> jax.Array:
    """Copies packed rows [T, K, G, X] into tiles [tiles, K, height, X].

    The `height` axis holds the tile's rows for each of the G heads in turn, then zeros.
    """
    num_tiles, tile_rows = tiles.rows.shape
    # If a tile has one row, tiles are rows, and a look-up would cost several operations a layer.
    rows = packed[:num_tiles, None] if tile_rows == 1 else take_rows(packed, tiles.rows)
    cut = rows.transpose(0, 2, 3, 1, 4)
    cut = cut.reshape(*cut.shape[:2], -1, cut.shape[-1])
    return jnp.pad(cut, ((0, 0), (0, 0), (0, height - cut.shape[2]), (0, 0)))


def join_rows(cut: jax.Array, tiles: QueryTiles, group: int) -> jax.Array:
    """Inverts `cut_rows`: from [tiles, K, height, H] to [T, N, H], with zeros in unused rows."""
    num_tiles, num_kv_heads, _, head_dim = cut.shape
    tile_rows = tiles.rows.shape[1]
    cut = cut[:, :, : group * tile_rows]
    cut = cut.reshape(num_tiles, num_kv_heads, group, tile_rows, head_dim)
    cut = cut.transpose(0, 3, 1, 2, 4).reshape(-1, num_kv_heads * group, head_dim)
    return used_rows(cut, tiles)


def used_rows(rows: jax.Array, tiles: QueryTiles) -> jax.Array:
    """Packs the rows of all tiles [tiles * tile_rows, N, H] into [T, N, H], zeros if unused."""
    num_rows, num_tiles = tiles.used.shape[0], tiles.rows.shape[0]
    if tiles.rows.shape[1] == 1:  # see `cut_rows`; a tile without tokens is zeros
        return jnp.pad(rows, ((0, num_rows - num_tiles), (0, 0), (0, 0)))
    packed = take_rows(rows, tiles.place_of_row)
    return jnp.where(tiles.used[:, None, None], packed, jnp.zeros((), packed.dtype))


def take_rows(array: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns `array[indices]` for indices known to be valid.

    Plain indexing also resolves negative indices, which costs an operation in every layer.
    """
    return jnp.take(array, indices, axis=0, mode="clip")


def _owner(ends: jax.Array, items: jax.Array) -> jax.Array:
    """Returns which of the consecutive ranges that end at `ends` holds each item.

    Items after all ranges belong to the last one.
    """
    # One comparison of all pairs is a single small operation. A binary search would be a loop.
    owner = jnp.searchsorted(ends, items, side="right", method="compare_all").astype(jnp.int32)
    return jnp.minimum(owner, ends.shape[0] - 1)
