"""Ragged attention on TPUs that begins with packed rows of a fused query/key/value product.

Two kernels: `split_heads` makes queries of the rows and writes their K/V to the cache; that of
`tpu_kernel` attends and packs its results.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from emsjax.pallas_kernels.cache_update.api import Places
from emsjax.pallas_kernels.cache_update.tpu_scales import too_many, write_scales
from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.ragged_attention.tiles import Prepared, tile_count
from emsjax.pallas_kernels.ragged_attention.tpu_heads import (
    HeadsShape,
    NormShape,
    bytes_of_heads,
    split_heads,
)
from emsjax.pallas_kernels.ragged_attention.tpu_tiles import (
    attend_tiles,
    blocks_of,
    prepare_tiles,
    unsupported_arrays,
)
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks, tpu_tile_height
from emsjax.pallas_kernels.tpu_registers import SUBLANES

# Of everything that grows with the rows of a step: it lies in VMEM whole.
MOST_BYTES = 6 << 20


def unsupported(
    q: jax.ShapeDtypeStruct, cache: Cache, num_kv_heads: int, max_q_len: int
) -> str | None:
    """Returns why `prepare` does not support these arguments, or None if it does."""
    if reason := unsupported_arrays(q, cache):
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


def prepare(
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
        _attend, q=q, prepared=prepared, slot_ids=slot_ids, places=places, **sizes
    )


def _attend(
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
