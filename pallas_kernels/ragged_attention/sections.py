"""What the attention kernels for GPUs share: tiles times sections of a slot's cache.

A program processes one tile (rows of one slot with the query heads of one KV head) and one section
of that slot's cache. XLA then combines the sections. Sections start at fixed positions, so a row's
sums are always added in the same order, whatever else is in the batch.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.tiles import (
    Prepared,
    TileFacts,
    Walk,
    Window,
    cut_rows,
    join_rows,
    least_position,
    query_tiles,
    tile_facts,
    window_scalars,
)
from emsjax.pallas_kernels.ragged_attention.tuning import GPUBlocks

# The score of a masked token. It is finite because a row whose first blocks are all masked would
# otherwise compute inf - inf.
MASKED = -1e30
LOG2_E = math.log2(math.e)


class Options(NamedTuple):
    """The static arguments and sizes of a call."""

    num_kv_heads: int
    scale: float
    window: bool
    tree: bool
    holes: bool
    soft_cap: float | None
    blocks: GPUBlocks
    capacity: int
    group: int
    scales: tuple[int, int] | None = None  # of an int8 cache: S / 128, and the rows of 128 tokens


class Inputs(NamedTuple):
    """The arrays that a kernel reads, in global memory."""

    layer: Any  # int32[1]
    facts: TileFacts
    window: Any | None  # see `window_scalars`
    ancestors: Any | None  # int32[tiles, M]
    holes: Any | None  # int32[B * S]
    q: Any  # [tiles, K, M, H]
    cache: Any  # [L, B * S, R * 128], keys of all heads and then values
    scales: Any | None = None  # float32[L, B * S / 128 * rows * 128], of an int8 cache

    @classmethod
    def of(cls, given: Iterator[Any], options: Options) -> "Inputs":
        """Takes the arrays from a kernel's arguments, some of which `options` omits."""
        layer = next(given)
        facts = TileFacts(*(next(given) for _ in TileFacts._fields))
        there = options.window, options.tree, options.holes
        window, ancestors, holes = (next(given) if each else None for each in there)
        q, cache = next(given), next(given)
        scales = None if options.scales is None else next(given)
        return cls(layer, facts, window, ancestors, holes, q, cache, scales)

    def arrays(self) -> list[jax.Array]:
        """Returns the arrays that are there, in the order of a kernel's arguments."""
        return jax.tree.leaves(self)


def first_scale(options: Options, slot: jax.Array, start: jax.Array, number: Any) -> jax.Array:
    """Returns where the scales of a block of tokens begin in a layer of `Inputs.scales`.

    Args:
      options: of an int8 cache. Blocks divide the 128 tokens of a row.
      slot: the slot.
      start: position of the first token.
      number: the KV head for its keys, K more for its values.
    """
    tiles, rows = options.scales or (0, 0)
    return ((slot * tiles + start // LANES) * rows + number) * LANES + start % LANES


def walk_of(
    inputs: Inputs, options: Options, window: Window | None, tile: jax.Array, section: jax.Array
) -> Walk:
    """Returns the blocks of a section that any row of the tile sees."""
    size, per_section = options.blocks.kv, options.blocks.section // options.blocks.kv
    begin = section * per_section
    end = jnp.minimum((inputs.facts.kv_end[tile] + size - 1) // size, begin + per_section)
    if window is None:
        return Walk(begin, end)
    return window.walk(least_position(inputs.facts, tile, options.tree), end, size, begin)


class Sums(NamedTuple):
    """The softmaxes of all sections. Scores are multiplied by log2(e): weights are powers of 2."""

    out: Any  # float32[tiles, K, sections, rows, H], weighted sum of values; anything if total is 0
    top: Any  # float32[tiles, K, sections, rows], largest score
    total: Any  # float32[tiles, K, sections, rows], sum of weights


Kernel = Callable[[Inputs, Options], Sums]


def prepare(
    kernel: Kernel,
    choose_blocks: Callable[..., GPUBlocks],
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
    """Implements `api.prepare` with a kernel, and with block sizes like those of `gpu_blocks`."""
    num_rows, num_heads, head_dim = q.shape
    _, num_slots, capacity = cache.shape[:3]
    group = num_heads // num_kv_heads
    blocks = choose_blocks(capacity, head_dim, group, max_q_len, num_slots * num_kv_heads)
    tiles = query_tiles(cu_q_lens, num_rows, max_q_len, blocks.q)
    if ancestors is not None:
        bits = jax.lax.bitcast_convert_type(ancestors, jnp.int32)
        bits = jnp.broadcast_to(bits[:, None, None, None], (num_rows, 1, group, 1))
        ancestors = cut_rows(bits, tiles, blocks.height)[:, 0, :, 0]
    if holes is not None:
        holes = holes.astype(jnp.int32).reshape(-1)
    facts = tile_facts(tiles, cu_q_lens, kv_lens, tree_starts)
    prepared = Prepared(tiles, facts, ancestors, holes)
    return functools.partial(
        _attend, kernel=kernel, blocks=blocks, prepared=prepared, num_kv_heads=num_kv_heads
    )


def _attend(
    q: jax.Array,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    *,
    kernel: Kernel,
    blocks: GPUBlocks,
    prepared: Prepared,
    num_kv_heads: int,
    scale: float,
    window: int | jax.Array | None,
    sink_tokens: int | jax.Array | None,
    soft_cap: float | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """Implements `api.ragged_attention`."""
    num_rows, num_heads, head_dim = q.shape
    num_layers, _, capacity, *token = cache.shape
    group = num_heads // num_kv_heads
    tiles, facts, ancestors, holes = prepared
    windowed, tree, holed = (x is not None for x in (window, ancestors, holes))
    values: Any = cache
    scales = rows_of_scales = None
    if isinstance(cache, Int8Cache):
        values, rows_of_scales = cache.values, cache.scale.shape[2:4]
        scales = cache.scale.reshape(num_layers, -1)
    sizes = blocks, capacity, group, rows_of_scales
    options = Options(num_kv_heads, scale, windowed, tree, holed, soft_cap, *sizes)
    inputs = Inputs(
        layer=jnp.reshape(layer, 1),
        facts=facts,
        window=window_scalars(window, sink_tokens),
        ancestors=ancestors,
        holes=holes,
        q=cut_rows(q.reshape(num_rows, num_kv_heads, group, head_dim), tiles, blocks.height),
        cache=values.reshape(num_layers, -1, math.prod(token)),
        scales=scales,
    )
    sums = kernel(inputs, options)
    if sinks is not None:  # as rows of one KV head: its query heads in turn, see `cut_rows`
        rows = jnp.repeat(sinks.reshape(num_kv_heads, group) * LOG2_E, blocks.q, axis=1)
        sinks = jnp.pad(rows, ((0, 0), (0, sums.top.shape[-1] - rows.shape[1])))[None]
    out = _combine(*sums, sinks)
    return join_rows(out.astype(q.dtype), tiles, group)


def _combine(
    out: jax.Array, top: jax.Array, total: jax.Array, sinks: jax.Array | None
) -> jax.Array:
    """Combines the softmaxes of all sections, see `Sums`, into one: float32[tiles, K, rows, H].

    Sinks, float32[1, K, rows], are like a section without values. The sections are added one after
    another, which is mostly a single launch in XLA. Reductions would take two or three.
    """
    most, summed = jnp.full_like(top[:, :, 0], MASKED), jnp.zeros_like(out[:, :, 0])
    weights = jnp.zeros_like(most)
    if sinks is not None:
        most, weights = jnp.broadcast_to(sinks, most.shape), weights + 1
    for n in range(top.shape[2]):
        before, most = most, jnp.maximum(most, top[:, :, n])
        decay = jnp.exp2(before - most)
        share = jnp.where(total[:, :, n] > 0, jnp.exp2(top[:, :, n] - most), 0.0)
        # A section without tokens does not write `out`, which may then be NaN.
        gained = jnp.where((share > 0)[..., None], out[:, :, n] * share[..., None], 0.0)
        summed = summed * decay[..., None] + gained
        weights = weights * decay + total[:, :, n] * share
    return summed / jnp.where(weights == 0, 1.0, weights)[..., None]
