"""The Mosaic kernel for attention on TPUs: one pass over each slot's own part of the cache.

A grid step processes one tile: rows of one slot with all their query heads. It walks over that
slot's keys and values block by block. Meanwhile the next block, of this tile or of the next tile,
is copied from HBM into the other of two buffers. The kernel fetches no whole piece past the tile's
last row, and uses each fetched block for every head and row of the tile.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.ragged_attention.tiles import TileFacts, Window
from emsjax.pallas_kernels.ragged_attention.tpu_block import (
    Options,
    Running,
    add_block,
    clear,
    clear_scales,
    visible_tokens,
)
from emsjax.pallas_kernels.ragged_attention.tpu_joined import Joined
from emsjax.pallas_kernels.ragged_attention.tpu_stream import Stream
from emsjax.pallas_kernels.tpu_registers import SUBLANES


class _Given(NamedTuple):
    """The references of a call; None for what its options leave out."""

    q: Any  # [K, M, W] in VMEM
    ancestors: Any
    sinks: Any
    holes: Any
    out: Any
    blocks_done: Any  # int32[1]
    stream: Stream
    joined: Joined | None
    running: Running


def _read(refs: tuple[Any, ...], options: Options) -> _Given:
    """Names the references of a call, which are in the order of `call_kernel`."""
    given = iter(refs)
    layer = next(given)[0]
    tiles = TileFacts(*(next(given) for _ in TileFacts._fields))
    first_row, num_rows = (next(given), next(given)) if options.packed else (None, None)
    window = Window.read(next(given)) if options.windowed else None
    q = next(given)
    ancestors = next(given) if options.tree else None
    sinks = next(given) if options.sinks else None
    holes = next(given) if options.holed else None
    cache = next(given)
    scale = next(given) if options.int8 else None
    out, blocks_done, buffers, arrived = (next(given) for _ in range(4))
    sizes = options.blocks.piece, options.tree
    stream = Stream(layer, tiles, cache, window, buffers, arrived, *sizes)
    if options.int8:
        stream = stream._replace(scale=scale, scale_buffers=next(given))
    joined = Joined(first_row, num_rows, next(given)) if options.packed else None
    running = Running(*given)
    return _Given(q, ancestors, sinks, holes, out, blocks_done, stream, joined, running)


def _kernel(*refs: Any, options: Options) -> None:
    """Processes one tile; see the module's docstring."""
    q, ancestors, sinks, holes, out, blocks_done, stream, joined, running = _read(refs, options)
    tile = pl.program_id(0)
    following = jnp.minimum(tile + 1, pl.num_programs(0) - 1)

    @pl.when(tile == 0)
    def _begin() -> None:
        blocks_done[0] = 0
        if joined is not None:
            joined.begin()
        stream.copy("start", tile, stream.first_block(tile), jnp.zeros((), jnp.int32))

    running.begin(sinks)
    steps = stream.walk(tile)
    # The buffers alternate across tiles as well: while a tile uses its last block, the next tile's
    # first block is copied into the other buffer.
    done = blocks_done[0]

    def attend(step: jax.Array, _: None) -> None:
        buffer = (done + step - steps.start) % 2
        number, last = steps.block(step), step + 1 == steps.end

        # The last block of the last tile has no successor.
        @pl.when(~last | (following > tile))
        def _next() -> None:
            next_block = jnp.where(last, stream.first_block(following), steps.block(step + 1))
            stream.copy("start", jnp.where(last, following, tile), next_block, 1 - buffer)

        stream.copy("wait", tile, number, buffer)
        block = stream.buffers.at[buffer]
        scales = stream.scale_buffers.at[buffer] if options.int8 else None

        # Blocks before the last one are fetched whole and hold only valid tokens.
        @pl.when(last)
        def _clear_past_end() -> None:
            if options.int8:  # any int8 number times a scale of zero is zero
                clear_scales(stream.valid(tile, number), scales)
            else:
                clear(stream.valid(tile, number), block)

        visible = visible_tokens(
            (q.shape[1], stream.block),
            number * stream.block,
            stream.tiles.q_start[tile],
            stream.tiles.row_start[tile],
            stream.window,
            ancestors,
            options.blocks.q,
        )
        if holes is not None:
            visible &= holes[pl.ds(number, 1), :] == 0
        add_block(q, block, scales, visible, running, options)

    jax.lax.fori_loop(steps.start, steps.end, attend, None)
    blocks_done[0] = done + jnp.maximum(steps.end - steps.start, 0)
    if joined is None:
        running.finish(out)
        return
    running.finish(running.out)
    joined.add(tile, running.out, options)
    pl.when(tile + 1 == pl.num_programs(0))(functools.partial(joined.finish, out))


def call_kernel(
    scalars: list[jax.Array],
    inputs: list[jax.Array],
    sinks: jax.Array | None,
    holes: jax.Array | None,
    cache: Cache,
    options: Options,
    num_rows: int,
) -> jax.Array:
    """Runs the kernel over all tiles; see `attend_tiles` for the result."""
    num_tiles, num_kv_heads, heads, lanes = inputs[0].shape

    def of_tile(array: jax.Array) -> pl.BlockSpec:
        rest = array.shape[1:]
        return pl.BlockSpec((None, *rest), lambda tile, *_: (tile, *(0 for _ in rest)))

    def of_slot(array: jax.Array) -> pl.BlockSpec:
        # The tiles' slots are the second of the prefetched scalars, see `TileFacts`.
        return pl.BlockSpec(
            (None, *array.shape[1:]), lambda tile, _layer, slots, *_: (slots[tile], 0, 0)
        )

    of_all = [] if sinks is None else [sinks]
    by_slot = [] if holes is None else [holes]
    blocks, rows = options.blocks, cache.shape[3]
    parts = rows // math.gcd(rows, SUBLANES * 4 // cache.dtype.itemsize)
    caches = [cache.values, cache.scale] if isinstance(cache, Int8Cache) else [cache]
    scratch = [
        pltpu.SMEM((1,), jnp.int32),
        pltpu.VMEM((2, parts, blocks.kv, rows // parts, LANES), cache.dtype),
        pltpu.SemaphoreType.DMA((2,)),
        *(
            pltpu.VMEM((2, blocks.kv // LANES, *scale.shape[3:]), scale.dtype)
            for scale in caches[1:]
        ),
    ]
    shape, of_result = inputs[0].shape, of_tile(inputs[0])
    if options.packed:
        shape = num_rows, options.num_heads * options.head_dim
        of_result = pl.BlockSpec(memory_space=pltpu.VMEM)
        scratch.append(Joined.scratch(num_rows, options))
    scratch += Running.scratch(num_kv_heads, heads, lanes, blocks.kv)
    # An upper bound: how long the slots are is unknown at compile time.
    longest = cache.shape[2]
    slot_bytes = sum(math.prod(array.shape[2:]) * array.dtype.itemsize for array in caches)
    cost = pl.CostEstimate(
        flops=4 * num_tiles * num_kv_heads * heads * lanes * longest,
        transcendentals=num_tiles * num_kv_heads * heads * longest,
        bytes_accessed=num_tiles * slot_bytes,
    )
    call = pl.pallas_call(
        functools.partial(_kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(num_tiles,),
            in_specs=[
                *map(of_tile, inputs),
                *(pl.BlockSpec(each.shape, lambda *_: (0, 0, 0)) for each in of_all),
                *map(of_slot, by_slot),
                *(pl.BlockSpec(memory_space=pl.ANY) for _ in caches),
            ],
            out_specs=of_result,
            scratch_shapes=scratch,
        ),
        out_shape=result_like(shape, inputs[0].dtype, inputs, caches),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=cost,
        name="ragged_attention",
    )
    return call(*scalars, *inputs, *of_all, *by_slot, *caches)
