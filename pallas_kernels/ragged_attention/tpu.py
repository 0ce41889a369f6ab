"""Ragged attention as a Mosaic kernel for TPUs: one pass over each slot's own part of the cache.

A grid step processes one tile: rows of one slot with all their query heads. It walks over that
slot's keys and values block by block. Meanwhile the next block, of this tile or of the next tile,
is copied from HBM into the other of two buffers. The kernel fetches no whole piece past the tile's
last row, and uses each fetched block for every head and row of the tile.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.cache_update.api import Places
from emsjax.pallas_kernels.cache_update.tpu_scales import too_many, write_scales
from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.ragged_attention.lanes import gather_values, spread_queries, width
from emsjax.pallas_kernels.ragged_attention.tiles import (
    Prepared,
    TileFacts,
    Walk,
    Window,
    cut_rows,
    join_rows,
    least_position,
    query_tiles,
    tile_count,
    tile_facts,
    window_scalars,
)
from emsjax.pallas_kernels.ragged_attention.tpu_block import (
    Options,
    Running,
    add_block,
    clear,
    clear_scales,
    visible_tokens,
)
from emsjax.pallas_kernels.ragged_attention.tpu_heads import (
    HeadsShape,
    NormShape,
    bytes_of_heads,
    split_heads,
)
from emsjax.pallas_kernels.ragged_attention.tpu_joined import Joined
from emsjax.pallas_kernels.ragged_attention.tuning import (
    TPUBlocks,
    tpu_blocks,
    tpu_tile_height,
)
from emsjax.pallas_kernels.tpu_registers import SUBLANES

DTYPES = (jnp.float32, jnp.bfloat16)
# Blocks divide S. For a capacity without this divisor they would be tiny.
CAPACITY_MULTIPLE = 32
# The scales of this many tokens of an int8 cache share a tile, which a block cannot cut.
INT8_CAPACITY_MULTIPLE = LANES
# Of everything that grows with the rows of a step if they are packed: it lies in VMEM whole.
MOST_BYTES = 6 << 20


class _Stream(NamedTuple):
    """Copies blocks of the cache from HBM to VMEM."""

    layer: jax.Array  # int32[]
    tiles: TileFacts
    cache: Any  # [L, B, S, R, 128] in HBM
    window: Window | None
    buffers: Any  # [2, parts, block, rows of a part, 128] in VMEM
    arrived: Any  # DMA semaphores, one for each buffer
    piece: int  # tokens
    tree: bool  # whether there are ancestors
    scale: Any = None  # [L, B, S / 128, R, 128] in HBM, of an int8 cache
    scale_buffers: Any = None  # [2, block / 128, R, 128] in VMEM

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return int(self.buffers.shape[2])

    def walk(self, tile: jax.Array) -> Walk:
        """Returns the blocks that any row of the tile sees."""
        end = pl.cdiv(self.tiles.kv_end[tile], self.block)
        if self.window is None:
            return Walk(jnp.zeros((), jnp.int32), end)
        steps = self.window.walk(least_position(self.tiles, tile, self.tree), end, self.block)
        # At most the last block: the walk over a tile's blocks also starts the next tile's copy, so
        # a used tile must take at least one.
        return steps._replace(start=jnp.minimum(steps.start, jnp.maximum(end - 1, 0)))

    def first_block(self, tile: jax.Array) -> jax.Array:
        """Returns the first block that the tile reads."""
        steps = self.walk(tile)
        return steps.block(steps.start)

    def valid(self, tile: jax.Array, block: jax.Array) -> jax.Array:
        """Returns how many tokens of the block are before the tile's end."""
        return jnp.minimum(self.tiles.kv_end[tile] - block * self.block, self.block)

    def copy(self, act: str, tile: jax.Array, block: jax.Array, buffer: jax.Array) -> None:
        """Starts or awaits the copy of a block, whole or in pieces up to the tile's end.

        Args:
          act: "start" or "wait".
          tile: index of the tile.
          block: index of the block in the slot's cache.
          buffer: 0 or 1.
        """
        valid = self.valid(tile, block)
        if self.scale is not None:
            self._copy_scales(act, tile, block, buffer)

        @pl.when(valid == self.block)
        def _whole() -> None:
            self._copy_some(act, tile, block, buffer, 0, self.block)

        @pl.when(valid < self.block)
        def _pieces() -> None:
            def piece(number: jax.Array, _: None) -> None:
                self._copy_some(act, tile, block, buffer, number * self.piece, self.piece)

            jax.lax.fori_loop(0, pl.cdiv(valid, self.piece), piece, None)

    def _copy_some(
        self,
        act: str,
        tile: jax.Array,
        block: jax.Array,
        buffer: jax.Array,
        first: jax.Array | int,
        count: int,
    ) -> None:
        """Starts or awaits the copy of `count` tokens, one part of their rows at a time.

        The kernel later loads one row of every token, at a stride of a part's rows. A strided load
        reaches several tokens at once only if the stride is at most 8, the rows of a register.
        Tokens with more rows are therefore split into parts.
        """
        start = block * self.block + first
        tokens = self.cache.at[self.layer, self.tiles.slot[tile], pl.ds(start, count)]
        _, parts, _, rows, _ = self.buffers.shape
        for part in range(parts):
            source = tokens.at[:, pl.ds(part * rows, rows)]
            target = self.buffers.at[buffer, part, pl.ds(first, count)]
            getattr(pltpu.make_async_copy(source, target, self.arrived.at[buffer]), act)()

    def _copy_scales(self, act: str, tile: jax.Array, block: jax.Array, buffer: jax.Array) -> None:
        """Starts or awaits the copy of a block's scales, always whole: they are few."""
        count = self.block // LANES
        source = self.scale.at[self.layer, self.tiles.slot[tile], pl.ds(block * count, count)]
        target = self.scale_buffers.at[buffer]
        getattr(pltpu.make_async_copy(source, target, self.arrived.at[buffer]), act)()


def unsupported(q: jax.Array | jax.ShapeDtypeStruct, cache: Cache, num_kv_heads: int) -> str | None:
    """Returns why the kernel does not support these arguments, or None if it does."""
    del num_kv_heads
    if q.dtype not in DTYPES:
        return f"q is {q.dtype}; the TPU kernel requires float32 or bfloat16"
    int8 = isinstance(cache, Int8Cache)
    if not int8 and cache.dtype != q.dtype:
        return f"the cache is {cache.dtype} and q is {q.dtype}; the TPU kernel requires one dtype"
    multiple = INT8_CAPACITY_MULTIPLE if int8 else CAPACITY_MULTIPLE
    if cache.shape[2] % multiple:
        return f"S is {cache.shape[2]}; the TPU kernel requires a multiple of {multiple}"
    return None


class _Given(NamedTuple):
    """The references of a call; None for what its options leave out."""

    q: Any  # [K, M, W] in VMEM
    ancestors: Any
    sinks: Any
    holes: Any
    out: Any
    blocks_done: Any  # int32[1]
    stream: _Stream
    joined: Joined | None
    running: Running


def _read(refs: tuple[Any, ...], options: Options) -> _Given:
    """Names the references of a call, which are in the order of `_call`."""
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
    stream = _Stream(layer, tiles, cache, window, buffers, arrived, *sizes)
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
    sizes: dict[str, Any] = {"num_kv_heads": num_kv_heads, "max_q_len": max_q_len}
    prepared = prepare_tiles(
        q, cache, cu_q_lens, kv_lens, ancestors, holes, tree_starts=tree_starts, **sizes
    )
    return functools.partial(_attend, prepared=prepared, **sizes)


def prepare_tiles(
    q: jax.ShapeDtypeStruct,
    cache: Cache,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    ancestors: jax.Array | None,
    holes: jax.Array | None,
    *,
    num_kv_heads: int,
    max_q_len: int,
    tree_starts: jax.Array | None = None,
) -> Prepared:
    """Cuts the rows into tiles; see `prepare` for the arguments."""
    num_rows, num_heads, _ = q.shape
    group = num_heads // num_kv_heads
    blocks = blocks_of(q, cache, num_kv_heads, max_q_len)
    tiles = query_tiles(cu_q_lens, num_rows, max_q_len, blocks.q)
    if ancestors is not None:
        bits = jax.lax.bitcast_convert_type(ancestors, jnp.int32)
        bits = jnp.broadcast_to(bits[:, None, None, None], (num_rows, 1, group, LANES))
        ancestors = cut_rows(bits, tiles, tpu_tile_height(blocks.q, group))[:, 0]
    if holes is not None:
        # One row for each block: VMEM can be sliced at any row, but not at any lane.
        holes = holes.astype(jnp.int32).reshape(holes.shape[0], -1, blocks.kv)
    facts = tile_facts(tiles, cu_q_lens, kv_lens, tree_starts)
    return Prepared(tiles, facts, ancestors, holes)


def _attend(
    q: jax.Array,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    *,
    prepared: Prepared,
    num_kv_heads: int,
    max_q_len: int,
    **options: Any,
) -> jax.Array:
    """Implements `api.ragged_attention`."""
    _, num_heads, head_dim = q.shape
    group = num_heads // num_kv_heads
    height = tpu_tile_height(blocks_of(q, cache, num_kv_heads, max_q_len).q, group)
    queries = cut_rows(spread_queries(q, num_kv_heads), prepared.tiles, height)
    out = attend_tiles(
        queries, q, cache, layer, prepared=prepared, max_q_len=max_q_len, packed=False, **options
    )
    return join_rows(gather_values(out, head_dim), prepared.tiles, group)


def attend_tiles(
    queries: jax.Array,  # [tiles, K, height, W], see `cut_rows`
    q: jax.Array | jax.ShapeDtypeStruct,  # [T, N, H], only their shape
    cache: Cache,  # [L, B, S, R, 128]
    layer: jax.Array,  # int32[]
    *,
    prepared: Prepared,
    max_q_len: int,
    packed: bool,
    scale: float,
    window: int | jax.Array | None = None,
    sink_tokens: int | jax.Array | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Returns what the queries see as [T, N * H] if `packed`, else as [tiles, K, height, W]."""
    num_kv_heads, height = queries.shape[1:3]
    _, num_heads, head_dim = q.shape
    tiles, facts, ancestors, holes = prepared
    options = Options(
        num_heads,
        num_kv_heads,
        head_dim,
        scale,
        windowed=window is not None,
        tree=ancestors is not None,
        holed=holes is not None,
        int8=isinstance(cache, Int8Cache),
        sinks=sinks is not None,
        soft_cap=soft_cap,
        blocks=blocks_of(q, cache, num_kv_heads, max_q_len),
        packed=packed,
    )
    scalars = [jnp.reshape(layer, 1), *facts]
    if packed:
        scalars += [tiles.first_row, tiles.num_rows]
    if (given := window_scalars(window, sink_tokens)) is not None:
        scalars.append(given)
    inputs = [queries]
    if ancestors is not None:
        inputs.append(ancestors)
    if sinks is not None:
        sinks = _rows_of_sinks(sinks.reshape(num_kv_heads, -1), options.blocks.q, height)
    return _call(scalars, inputs, sinks, holes, cache, options, q.shape[0])


def unsupported_packed(
    q: jax.ShapeDtypeStruct, cache: Cache, num_kv_heads: int, max_q_len: int
) -> str | None:
    """Returns why `prepare_packed` does not support these arguments, or None if it does."""
    if reason := unsupported(q, cache, num_kv_heads):
        return reason
    if isinstance(cache, Int8Cache):
        if 2 * num_kv_heads > LANES:
            return f"there are {num_kv_heads} key heads; the TPU kernel takes {LANES // 2}"
        if reason := too_many(cache.scale, q.shape[0]):
            return reason
    num_rows, num_heads, head_dim = q.shape
    if num_rows % SUBLANES:
        return f"there are {num_rows} rows; the TPU kernel takes multiples of {SUBLANES}"
    blocks = blocks_of(q, cache, num_kv_heads, max_q_len)
    shape = _shape_of_heads(num_heads, num_kv_heads, head_dim, blocks)
    tiles = tile_count(num_rows, cache.shape[1], max_q_len, blocks.q)
    needed = bytes_of_heads(shape, num_rows, tiles, cache.shape[3], q.dtype.itemsize)
    if needed > MOST_BYTES:
        return f"{num_rows} rows need {needed} bytes of VMEM; the TPU kernel takes {MOST_BYTES}"
    return None


def prepare_packed(
    q: jax.ShapeDtypeStruct,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128], or only its shape
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
    ancestors: jax.Array | None,  # uint32[T]
    holes: jax.Array | None,  # bool[B, S]
    slot_ids: jax.Array,  # int32[T]
    places: Places,
    *,
    num_kv_heads: int,
    max_q_len: int,
    tree_starts: jax.Array | None = None,  # int32[B]
) -> Callable[..., tuple[jax.Array, Cache]]:
    """Implements `api.prepare_packed`."""
    sizes: dict[str, Any] = {"num_kv_heads": num_kv_heads, "max_q_len": max_q_len}
    prepared = prepare_tiles(
        q, cache, cu_q_lens, kv_lens, ancestors, holes, tree_starts=tree_starts, **sizes
    )
    return functools.partial(
        _attend_packed, q=q, prepared=prepared, slot_ids=slot_ids, places=places, **sizes
    )


def _attend_packed(
    packed: jax.Array,  # [T, (N + 2K)H]
    cache: Cache,  # [L, B, S, R, 128]
    *,
    angles: tuple[jax.Array, jax.Array] | None,  # [T, 1, pairs] or [tables, T, 1, pairs] each
    interleaved: bool,
    layer: jax.Array,  # int32[]
    norms: HeadNorms | None = None,
    table: jax.Array | None = None,  # int32[]
    factor: jax.Array | None = None,  # float32[T, 1, 1]
    q: jax.ShapeDtypeStruct,
    prepared: Prepared,
    slot_ids: jax.Array,
    places: Places,
    num_kv_heads: int,
    max_q_len: int,
    **options: Any,
) -> tuple[jax.Array, Cache]:
    """Implements `api.AttendPacked`."""
    _, num_heads, head_dim = q.shape
    blocks = blocks_of(q, cache, num_kv_heads, max_q_len)
    shape = _shape_of_heads(num_heads, num_kv_heads, head_dim, blocks)
    if angles is not None:
        shape = shape._replace(turned=2 * angles[0].shape[-1], interleaved=interleaved)
    if norms is not None:
        whole = norms.queries.shape[1] > head_dim
        shape = shape._replace(norm=NormShape(norms.eps, norms.offset, whole))
    shape = shape._replace(scaled=factor is not None, int8=isinstance(cache, Int8Cache))
    given = packed, norms, angles, table, factor
    where = slot_ids, places.of_row, places.used
    tiles = prepared.tiles.first_row
    if isinstance(cache, Int8Cache):
        split = split_heads(*given, cache.values, layer, *where, tiles, shape)
        queries, values, scales = split
        cache = Int8Cache(values, write_scales(cache.scale, scales, layer, *where))
    else:
        queries, cache = split_heads(*given, cache, layer, *where, tiles, shape)
    seen = attend_tiles(
        queries, q, cache, layer, prepared=prepared, max_q_len=max_q_len, packed=True, **options
    )
    return seen, cache


def _shape_of_heads(
    num_heads: int, num_kv_heads: int, head_dim: int, blocks: TPUBlocks
) -> HeadsShape:
    height = tpu_tile_height(blocks.q, num_heads // num_kv_heads)
    return HeadsShape(num_heads, num_kv_heads, head_dim, blocks.q, height)


def _rows_of_sinks(sinks: jax.Array, rows: int, height: int) -> jax.Array:
    """Lays out sinks [K, G] as the rows of a tile, see `cut_rows`, in all lanes."""
    of_rows = jnp.repeat(sinks, rows, axis=1)
    of_rows = jnp.pad(of_rows, ((0, 0), (0, height - of_rows.shape[1])))
    return jnp.broadcast_to(of_rows[..., None], (*of_rows.shape, LANES))


def blocks_of(
    q: jax.ShapeDtypeStruct | jax.Array,
    cache: Cache,
    num_kv_heads: int,
    max_q_len: int,
) -> TPUBlocks:
    """Returns the kernel's block sizes for these arguments of `prepare`."""
    _, num_heads, head_dim = q.shape
    lanes = width(num_kv_heads, head_dim)
    sizes = cache.dtype.itemsize, q.dtype.itemsize
    return tpu_blocks(cache.shape, *sizes, num_heads, max_q_len, lanes)


def _call(
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
