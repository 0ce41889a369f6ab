"""Attention of tiles on TPUs: which rows a tile holds, the sizes of blocks, the kernel's operands.

Both backends use it: `tpu`, which is given queries, and `tpu_packed`, which is given the rows of a
product.
"""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.lanes import width
from emsjax.pallas_kernels.ragged_attention.tiles import (
    Prepared,
    cut_rows,
    query_tiles,
    tile_facts,
    window_scalars,
)
from emsjax.pallas_kernels.ragged_attention.tpu_block import Options
from emsjax.pallas_kernels.ragged_attention.tpu_kernel import call_kernel
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks, tpu_blocks, tpu_tile_height

DTYPES = (jnp.float32, jnp.bfloat16)
# Blocks divide S. For a capacity without this divisor they would be tiny.
CAPACITY_MULTIPLE = 32
# The scales of this many tokens of an int8 cache share a tile, which a block cannot cut.
INT8_CAPACITY_MULTIPLE = LANES


def unsupported_arrays(q: jax.Array | jax.ShapeDtypeStruct, cache: Cache) -> str | None:
    """Returns why the kernel does not support these arrays, or None if it does."""
    if q.dtype not in DTYPES:
        return f"q is {q.dtype}; the TPU kernel requires float32 or bfloat16"
    int8 = isinstance(cache, Int8Cache)
    if not int8 and cache.dtype != q.dtype:
        return f"the cache is {cache.dtype} and q is {q.dtype}; the TPU kernel requires one dtype"
    multiple = INT8_CAPACITY_MULTIPLE if int8 else CAPACITY_MULTIPLE
    if cache.shape[2] % multiple:
        return f"S is {cache.shape[2]}; the TPU kernel requires a multiple of {multiple}"
    return None


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
    """Cuts the rows into tiles; see `api.prepare` for the arguments."""
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
    return call_kernel(scalars, inputs, sinks, holes, cache, options, q.shape[0])


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


def _rows_of_sinks(sinks: jax.Array, rows: int, height: int) -> jax.Array:
    """Lays out sinks [K, G] as the rows of a tile, see `cut_rows`, in all lanes."""
    of_rows = jnp.repeat(sinks, rows, axis=1)
    of_rows = jnp.pad(of_rows, ((0, 0), (0, height - of_rows.shape[1])))
    return jnp.broadcast_to(of_rows[..., None], (*of_rows.shape, LANES))
