"""Ragged attention in plain XLA: tile by tile, block by block, with an online softmax.

A tile is a few consecutive rows of one slot. It walks over that slot's cache from the first block
that its rows may see to the last valid one. The work therefore depends on each sample's length,
not on the capacity S. Blocks start at absolute positions, so a row's sums are always added in the
same order, whatever else is in the buffer.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.int8_cache import RESTORED, Cache, read_block
from emsjax.pallas_kernels.manual_axes import varying_like
from emsjax.pallas_kernels.ragged_attention.tiles import (
    Prepared,
    TileFacts,
    Walk,
    Window,
    lag,
    least_position,
    query_tiles,
    tile_facts,
    used_rows,
)
from emsjax.pallas_kernels.ragged_attention.tuning import BLOCKS, tile_height

# The score of a masked token. It is finite because a row whose first blocks are all masked would
# otherwise compute inf - inf.
MASKED = -1e30


class _Tile(NamedTuple):
    """The queries of one tile and what they may attend to."""

    queries: jax.Array  # [K, rows * G, H]
    positions: jax.Array  # int32[rows * G], each row's own position in the slot's cache
    ancestors: jax.Array | None  # uint32[rows * G]
    facts: TileFacts  # int32[] each


def _visible(
    tile: _Tile,
    kv_positions: jax.Array,
    window: Window | None,
    there: jax.Array,
) -> jax.Array:
    """Returns which cache positions [S] each row of the tile may attend to, bool[rows * G, S]."""
    row, column = tile.positions, kv_positions[None, :]
    visible = (column <= row[:, None]) & there[None, :]
    if tile.ancestors is not None:
        draft = column - tile.facts.q_start
        bit = (tile.ancestors[:, None] >> jnp.clip(draft, 0, 31).astype(jnp.uint32)) & 1
        visible &= (draft < 0) | (bit == 1)
    if window is not None:
        if tile.ancestors is not None:
            bits = jax.lax.bitcast_convert_type(tile.ancestors, jnp.int32)
            row -= lag(bits, row - tile.facts.q_start)
        visible &= window.shows(column, row[:, None])
    return visible


def _attend_tile(
    tile: _Tile,
    cache: Cache,
    layer: jax.Array,
    block: int,
    num_kv_heads: int,
    scale: float,
    window: Window | None,
    soft_cap: float | None,
    sinks: jax.Array | None,
    holes: jax.Array | None,
) -> jax.Array:
    """Returns the attention of one tile over its slot's cache, float32[K, rows * G, H]."""
    dtype, head_dim = tile.queries.dtype, tile.queries.shape[2]
    # Sliced once for the whole tile: slicing the mask of all slots in every block takes as long as
    # attending to the block.
    slot_holes = None if holes is None else holes[tile.facts.slot]

    def attend_block(step: jax.Array, carry: tuple) -> tuple:
        top, total, out = carry
        first = steps.block(step) * block
        read = read_block(
            cache, layer, tile.facts.slot, first, block, num_kv_heads, head_dim, dtype
        )
        kv_positions = first + jnp.arange(block, dtype=jnp.int32)
        scores = jnp.einsum(
            "KMH,KSH->KMS", tile.queries, read.k, preferred_element_type=jnp.float32
        )
        scores *= scale
        if read.k_scale is not None:
            scores *= read.k_scale[:, None]
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        # Positions after the end and holes are cleared, not only masked: they may hold NaN, and
        # 0 * NaN is NaN.
        there = kv_positions < tile.facts.kv_end
        if slot_holes is not None:
            there &= ~slot_holes[kv_positions]
        visible = _visible(tile, kv_positions, window, there)
        scores = jnp.where(visible[None], scores, MASKED)
        new_top = jnp.maximum(top, scores.max(axis=2))
        weights = jnp.exp(scores - new_top[..., None])
        decay = jnp.exp(top - new_top)
        v, scaled = jnp.where(there[None, :, None], read.v, jnp.zeros((), dtype)), weights
        if read.v_scale is not None:
            scaled = weights * jnp.where(there, read.v_scale * RESTORED, 0)[:, None]
        gained = jnp.einsum(
            "KMS,KSH->KMH", scaled.astype(dtype), v, preferred_element_type=jnp.float32
        )
        if read.v_scale is not None:
            gained /= RESTORED
        return new_top, total * decay + weights.sum(axis=2), out * decay[..., None] + gained

    end = (tile.facts.kv_end + block - 1) // block
    steps = Walk(jnp.zeros_like(end), end)
    if window is not None:
        least = least_position(tile.facts, (), tile.ancestors is not None)
        steps = window.walk(least, end, block)
    shape = tile.queries.shape[:2]
    top, total = jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    if sinks is not None:  # a score that is there before all others
        top = jnp.tile(sinks.reshape(num_kv_heads, -1), shape[1] * num_kv_heads // len(sinks))
        total = jnp.ones(shape, jnp.float32)
    empty = (top, total, jnp.zeros((*shape, head_dim), jnp.float32))
    empty = jax.tree.map(lambda x: varying_like(x, tile.queries, cache), empty)
    _, total, out = jax.lax.fori_loop(steps.start, steps.end, attend_block, empty)
    return out / jnp.where(total == 0, 1, total)[..., None]


def prepare(
    q: jax.ShapeDtypeStruct,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128], or only its shape
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
    ancestors: jax.Array | None,  # uint32[T]
    holes: jax.Array | None,  # bool[B, S]
    *,
    num_kv_heads: int,
    max_q_len: int,
    tree_starts: jax.Array | None = None,  # int32[B]
) -> Callable[..., jax.Array]:
    """Implements `api.prepare`."""
    num_rows, num_heads, _ = q.shape
    blocks, group = BLOCKS[target_platform()], num_heads // num_kv_heads
    tile_rows = tile_height(blocks, num_rows, cache.shape[1], max_q_len, group)
    tiles = query_tiles(cu_q_lens, num_rows, max_q_len, tile_rows)
    if ancestors is not None:
        ancestors = jnp.repeat(ancestors[tiles.rows], group, axis=1)
    facts = tile_facts(tiles, cu_q_lens, kv_lens, tree_starts)
    prepared = Prepared(tiles, facts, ancestors, holes)
    return functools.partial(_attend, prepared=prepared, num_kv_heads=num_kv_heads)


def _attend(
    q: jax.Array,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    *,
    prepared: Prepared,
    num_kv_heads: int,
    scale: float,
    window: int | jax.Array | None,
    sink_tokens: int | jax.Array | None,
    soft_cap: float | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Implements `api.ragged_attention`."""
    _, num_heads, head_dim = q.shape
    group = num_heads // num_kv_heads
    blocks = BLOCKS[target_platform()]
    block = math.gcd(cache.shape[2], blocks.kv)
    tiles, holes = prepared.tiles, prepared.holes
    tile_rows = tiles.rows.shape[1]
    offsets = jnp.arange(tile_rows, dtype=jnp.int32)
    seen = None if window is None else Window(window, sink_tokens)

    def attend(facts: TileFacts, rows: jax.Array, ancestors: jax.Array | None) -> jax.Array:
        queries = q[rows].reshape(tile_rows, num_kv_heads, group, head_dim)
        tile = _Tile(
            queries=queries.swapaxes(0, 1).reshape(num_kv_heads, -1, head_dim),
            positions=jnp.repeat(facts.row_start + offsets, group),
            ancestors=ancestors,
            facts=facts,
        )
        options = scale, seen, soft_cap, sinks, holes
        out = _attend_tile(tile, cache, layer, block, num_kv_heads, *options)
        out = out.astype(q.dtype).reshape(num_kv_heads, tile_rows, group, head_dim)
        return out.swapaxes(0, 1).reshape(tile_rows, num_heads, head_dim)

    work = (prepared.facts, tiles.rows, prepared.ancestors)
    out = jax.lax.map(lambda item: attend(*item), work, batch_size=blocks.tiles_at_once)
    return used_rows(out.reshape(-1, num_heads, head_dim), tiles)
