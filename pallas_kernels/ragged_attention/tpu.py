"""Ragged attention as a Mosaic kernel: one pass over each slot's own part of the cache.

A grid step takes one tile: rows of one slot with all their query heads. It walks over that slot's
keys and values block by block, while the next block, of this tile or of the next, is on its way
from HBM into the other of two buffers. Only what lies before the tile's last row is fetched, and
each fetched block serves every head and every row of the tile.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_layout import LANES
from emsjax.pallas_kernels.ragged_attention.lanes import (
    Place,
    gather_values,
    places,
    spread_queries,
    width,
)
from emsjax.pallas_kernels.ragged_attention.tiles import (
    TileFacts,
    cut_rows,
    join_rows,
    query_tiles,
    tile_facts,
)
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks, tpu_blocks

# Finite, so that a row whose first blocks are all masked has no inf - inf.
MASKED = -1e30
# Rows of a vector register: products with fewer rows cost as much.
SUBLANES = 8
DTYPES = (jnp.float32, jnp.bfloat16)


class _Options(NamedTuple):
    """What is static about a call."""

    num_kv_heads: int
    head_dim: int
    scale: float
    windowed: bool
    tree: bool
    soft_cap: float | None
    blocks: TPUBlocks


class _Scratch(NamedTuple):
    """What outlives a grid step, and the running softmax of a tile."""

    buffers: Any  # [2, block, R, 128], blocks of the cache
    arrived: Any  # DMA semaphores, one a buffer
    blocks_done: Any  # int32[1] in SMEM: which buffer is next
    top: Any  # float32[K, M, 128], largest score so far, the same in all lanes
    total: Any  # float32[K, M, 128], sum of weights so far
    out: Any  # float32[K, M, W], weighted values so far


def unsupported(q: jax.Array, cache: jax.Array, num_kv_heads: int) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    del num_kv_heads
    if q.dtype not in DTYPES:
        return f"q is {q.dtype}, the TPU kernel takes float32 and bfloat16"
    if cache.dtype != q.dtype:
        return f"the cache is {cache.dtype} and q {q.dtype}: the TPU kernel wants one type"
    return None


def _fetch(
    act: str,
    tile: jax.Array,
    block: jax.Array,
    buffer: jax.Array,
    layer: jax.Array,
    tiles: TileFacts,
    cache: Any,
    scratch: _Scratch,
    blocks: TPUBlocks,
) -> None:
    """Starts or awaits the copy of a block into a buffer, in pieces, up to the tile's end."""
    start = block * blocks.kv
    tokens = jnp.minimum(tiles.kv_end[tile] - start, blocks.kv)

    def piece(number: jax.Array, _: None) -> None:
        first = number * blocks.piece
        source = cache.at[layer, tiles.slot[tile], pl.ds(start + first, blocks.piece)]
        target = scratch.buffers.at[buffer, pl.ds(first, blocks.piece)]
        getattr(pltpu.make_async_copy(source, target, scratch.arrived.at[buffer]), act)()

    jax.lax.fori_loop(0, pl.cdiv(tokens, blocks.piece), piece, None)


def _clear(first: jax.Array, end: jax.Array, buffer: jax.Array, scratch: _Scratch) -> None:
    """Zeros in tokens of a buffer: what lies there may be NaN, and 0 * NaN is NaN."""

    def clear(token: jax.Array, _: None) -> None:
        scratch.buffers[buffer, token] = jnp.zeros_like(scratch.buffers[buffer, token])

    jax.lax.fori_loop(first, end, clear, None)


def _flat(block: Any) -> Any:
    """A block [tokens, R, 128] as one matrix of lanes; two rows of 16 bits make one of words."""
    tokens, rows, lanes = block.shape
    flat = block.reshape(tokens * rows, lanes)
    return flat if block.dtype == jnp.float32 else flat.bitcast(jnp.uint32)


class _Rows:
    """Rows of a block [tokens, R, 128], each loaded from VMEM once for the heads that share it."""

    def __init__(self, block: Any):
        self.dtype = block.dtype
        self._packing = 4 // block.dtype.itemsize
        self._step = block.shape[1] // self._packing
        self._flat = _flat(block)
        self._loaded: dict[int, jax.Array] = {}

    def __getitem__(self, row: int) -> jax.Array:
        """One row of 128 lanes of every token, [tokens, 128]."""
        first = row // self._packing
        if first not in self._loaded:
            self._loaded[first] = self._flat[first :: self._step, :]
        loaded = self._loaded[first]
        if self._packing == 1:
            return loaded
        # Of two rows that share words the even one is in the lower halves.
        upper = loaded << 16 if row % 2 == 0 else loaded & jnp.uint32(0xFFFF0000)
        return pltpu.bitcast(upper, jnp.float32).astype(self.dtype)


def _product(left: jax.Array, right: jax.Array, contract_right: int) -> jax.Array:
    """left [M, X] with right over X, in float32."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (contract_right,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def _visible(
    shape: tuple[int, int],
    block_start: jax.Array,
    q_start: jax.Array,
    row_start: jax.Array,
    window: Any,
    ancestors: Any,
    rows: int,
) -> jax.Array:
    """Which tokens of the block each row attends to, bool[M, tokens]; M is heads times rows."""
    column = block_start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    row = row_start + (jax.lax.broadcasted_iota(jnp.int32, shape, 0) & (rows - 1))
    visible = column <= row
    if window is not None:
        visible &= column > row - window[0]
    if ancestors is not None:
        draft = column - q_start
        bit = jax.lax.shift_right_logical(ancestors[:, :1], jnp.clip(draft, 0, 31)) & 1
        visible &= (draft < 0) | (bit == 1)
    return visible


def _attend_head(
    head: int,
    key: Place,
    value: Place,
    q: Any,
    rows: _Rows,
    visible: jax.Array,
    scratch: _Scratch,
    options: _Options,
) -> None:
    """Adds one block to the running softmax of all rows of one KV head."""
    scores = jnp.zeros(visible.shape, jnp.float32)
    for number, row in enumerate(range(key.first, key.end)):
        lanes = slice(number * LANES, (number + 1) * LANES)
        scores += _product(q[head, :, lanes], rows[row], 1)
    scores *= options.scale
    if options.soft_cap is not None:
        scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
    scores = jnp.where(visible, scores, MASKED)

    top = scratch.top[head]
    new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
    weights = jnp.exp(scores - new_top[:, :1])
    decay = jnp.exp(top - new_top)
    scratch.top[head] = new_top
    scratch.total[head] = scratch.total[head] * decay + weights.sum(axis=1, keepdims=True)
    for number, row in enumerate(range(value.first, value.end)):
        lanes = slice(number * LANES, (number + 1) * LANES)
        gained = _product(weights.astype(rows.dtype), rows[row], 0)
        scratch.out[head, :, lanes] = scratch.out[head, :, lanes] * decay + gained


def _kernel(*refs: Any, options: _Options) -> None:
    """One tile; see the module."""
    blocks = options.blocks
    given = iter(refs)
    layer = next(given)[0]
    tiles = TileFacts(*(next(given) for _ in TileFacts._fields))
    window = next(given) if options.windowed else None
    q = next(given)
    ancestors = next(given) if options.tree else None
    cache, out = next(given), next(given)
    scratch = _Scratch(*given)
    tile, num_tiles = pl.program_id(0), pl.num_programs(0)

    def first_block(tile: jax.Array) -> jax.Array:
        if window is None:
            return jnp.zeros((), jnp.int32)
        return jnp.maximum(tiles.row_start[tile] - window[0] + 1, 0) // blocks.kv

    def fetch(act: str, tile: jax.Array, block: jax.Array, buffer: jax.Array) -> None:
        _fetch(act, tile, block, buffer, layer, tiles, cache, scratch, blocks)

    @pl.when(tile == 0)
    def _begin() -> None:
        scratch.blocks_done[0] = 0
        fetch("start", tile, first_block(tile), jnp.zeros((), jnp.int32))

    scratch.top[...] = jnp.full_like(scratch.top, MASKED)
    scratch.total[...] = jnp.zeros_like(scratch.total)
    scratch.out[...] = jnp.zeros_like(scratch.out)
    first, kv_end = first_block(tile), tiles.kv_end[tile]
    end = pl.cdiv(kv_end, blocks.kv)
    done = scratch.blocks_done[0]

    def attend(number: jax.Array, _: None) -> None:
        buffer = (done + number - first) % 2
        last = number + 1 == end

        @pl.when(~last)
        def _next_block() -> None:
            fetch("start", tile, number + 1, 1 - buffer)

        @pl.when(last & (tile + 1 < num_tiles))
        def _next_tile() -> None:
            following = jnp.minimum(tile + 1, num_tiles - 1)
            fetch("start", following, first_block(following), 1 - buffer)

        fetch("wait", tile, number, buffer)
        start = number * blocks.kv

        @pl.when(last)
        def _clear_past_end() -> None:
            # To the end of what was fetched; in a buffer that was never full, to its end.
            valid = kv_end - start
            fetched = pl.cdiv(valid, blocks.piece) * blocks.piece
            fresh = done + number - first < 2
            _clear(valid, jnp.where(fresh, blocks.kv, fetched), buffer, scratch)

        visible = _visible(
            (q.shape[1], blocks.kv),
            start,
            tiles.q_start[tile],
            tiles.row_start[tile],
            window,
            ancestors,
            blocks.q,
        )
        keys, values = places(options.num_kv_heads, options.head_dim)
        block = _Rows(scratch.buffers.at[buffer])
        for head, (key, value) in enumerate(zip(keys, values, strict=True)):
            _attend_head(head, key, value, q, block, visible, scratch, options)

    jax.lax.fori_loop(first, end, attend, None)
    scratch.blocks_done[0] = done + jnp.maximum(end - first, 0)
    total = scratch.total[...]
    total = jnp.where(total == 0, 1.0, total)
    for lane in range(0, out.shape[-1], LANES):
        lanes = slice(lane, lane + LANES)
        out[:, :, lanes] = (scratch.out[:, :, lanes] / total).astype(out.dtype)


def ragged_attention(
    q: jax.Array,  # [T, N, H]
    cache: jax.Array,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
    ancestors: jax.Array | None,  # uint32[T]
    *,
    num_kv_heads: int,
    max_q_len: int,
    scale: float,
    window: int | jax.Array | None,
    soft_cap: float | None,
) -> jax.Array:
    """See `api.ragged_attention`."""
    num_rows, num_heads, head_dim = q.shape
    group = num_heads // num_kv_heads
    lanes = width(num_kv_heads, head_dim)
    blocks = tpu_blocks(cache.shape, q.dtype.itemsize, num_heads, max_q_len, lanes)
    options = _Options(
        num_kv_heads, head_dim, scale, window is not None, ancestors is not None, soft_cap, blocks
    )
    tiles = query_tiles(cu_q_lens, num_rows, max_q_len, blocks.q)
    height = pl.cdiv(group * blocks.q, SUBLANES) * SUBLANES

    scalars = [jnp.reshape(layer, 1), *tile_facts(tiles, cu_q_lens, kv_lens)]
    if window is not None:
        scalars.append(jnp.reshape(jnp.asarray(window, jnp.int32), 1))
    inputs = [cut_rows(spread_queries(q, num_kv_heads), tiles, blocks.q, height)]
    if ancestors is not None:
        bits = jax.lax.bitcast_convert_type(ancestors, jnp.int32)
        bits = jnp.broadcast_to(bits[:, None, None, None], (num_rows, 1, group, LANES))
        inputs.append(cut_rows(bits, tiles, blocks.q, height)[:, 0])
    out = gather_values(_call(scalars, inputs, cache, options), head_dim)
    return join_rows(out, tiles, blocks.q, group, cu_q_lens)


def _call(
    scalars: list[jax.Array], inputs: list[jax.Array], cache: jax.Array, options: _Options
) -> jax.Array:
    """Runs the kernel over all tiles: [tiles, K, M, W] in the type of the queries."""
    num_tiles, num_kv_heads, heads, lanes = inputs[0].shape

    def of_tile(array: jax.Array) -> pl.BlockSpec:
        rest = array.shape[1:]
        return pl.BlockSpec((None, *rest), lambda tile, *_: (tile, *(0 for _ in rest)))

    blocks = options.blocks
    state = (num_kv_heads, heads)
    scratch = _Scratch(
        buffers=pltpu.VMEM((2, blocks.kv, *cache.shape[3:]), cache.dtype),
        arrived=pltpu.SemaphoreType.DMA((2,)),
        blocks_done=pltpu.SMEM((1,), jnp.int32),
        top=pltpu.VMEM((*state, LANES), jnp.float32),
        total=pltpu.VMEM((*state, LANES), jnp.float32),
        out=pltpu.VMEM((*state, lanes), jnp.float32),
    )
    longest = cache.shape[2]
    cost = pl.CostEstimate(
        flops=4 * num_tiles * num_kv_heads * heads * lanes * longest,
        transcendentals=num_tiles * num_kv_heads * heads * longest,
        bytes_accessed=num_tiles * longest * cache.shape[3] * LANES * cache.dtype.itemsize,
    )
    call = pl.pallas_call(
        functools.partial(_kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(num_tiles,),
            in_specs=[*map(of_tile, inputs), pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=of_tile(inputs[0]),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=cost,
        name="ragged_attention",
    )
    return call(*scalars, *inputs, cache)
