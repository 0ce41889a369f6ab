"""Ragged attention as a Mosaic kernel for TPUs, see `tpu_kernel`."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.ragged_attention.lanes import gather_values, spread_queries
from emsjax.pallas_kernels.ragged_attention.tiles import Prepared, cut_rows, join_rows
from emsjax.pallas_kernels.ragged_attention.tpu_tiles import (
    attend_tiles,
    blocks_of,
    prepare_tiles,
    unsupported_arrays,
)
from emsjax.pallas_kernels.ragged_attention.tuning import tpu_tile_height


def unsupported(q: jax.Array | jax.ShapeDtypeStruct, cache: Cache, num_kv_heads: int) -> str | None:
    """Returns why the kernel does not support these arguments, or None if it does."""
    del num_kv_heads
    return unsupported_arrays(q, cache)


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
