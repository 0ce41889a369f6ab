"""How the keys and values of one token lie in the cache.

The cache is `[L, B, S, R, 128]`: layer, slot, position, then R rows of 128 lanes that hold the
token's keys (K heads of width H, one after the other), then its values, then padding. One token
is one contiguous, aligned piece, so that writing it at any position is a single copy.

R is rounded up to 2, 4 or a multiple of 8 on TPU, where other row counts make XLA keep the cache
in a permuted layout and transpose all of it around every kernel.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from emsjax.pallas_kernels.backends import target_platform

LANES = 128


def rows_per_token(num_kv_heads: int, head_dim: int) -> int:
    """Rows of 128 lanes that one token's keys and values take on the target platform.

    Args:
      num_kv_heads: K.
      head_dim: H.
    """
    rows = rows_needed(num_kv_heads, head_dim)
    if target_platform() != "tpu":
        return rows
    return next((r for r in (2, 4) if rows <= r), -(-rows // 8) * 8)


def rows_needed(num_kv_heads: int, head_dim: int) -> int:
    """The fewest rows of 128 lanes that hold a token's keys and values."""
    return -(-2 * num_kv_heads * head_dim // LANES)


def storage_dtypes(dtype: jnp.dtype) -> tuple[jnp.dtype, ...]:
    """Types that a cache of `dtype` may have: its own, or the same bits as integers."""
    own = jnp.dtype(dtype)
    return (own, jnp.dtype(jnp.uint16)) if own.itemsize == 2 else (own,)


def storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Element type of the cache for a model that computes in `dtype`.

    On CPU, XLA widens a whole bfloat16 cache to float32 and back at every scatter (measured:
    3 s a step for SmolLM2), so there the same 16 bits are stored as integers.
    """
    widened = target_platform() == "cpu" and dtype == jnp.bfloat16
    return jnp.dtype(jnp.uint16 if widened else dtype)


def pack_kv(k: jax.Array, v: jax.Array, cache: jax.Array) -> jax.Array:
    """Lays out new keys and values [T, K, H] each as rows [T, R, 128] of `cache`'s type."""
    num_tokens = k.shape[0]
    rows = cache.shape[-2]
    flat = jnp.concatenate([k.reshape(num_tokens, -1), v.reshape(num_tokens, -1)], axis=1)
    flat = jnp.pad(flat, ((0, 0), (0, rows * LANES - flat.shape[1])))
    if flat.dtype != cache.dtype:
        flat = jax.lax.bitcast_convert_type(flat, cache.dtype)
    return flat.reshape(num_tokens, rows, LANES)


def read_kv(
    cache: jax.Array,
    layer: jax.Array,
    slot: jax.Array,
    start: jax.Array,
    length: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of `length` tokens of a slot from `start` on, [K, length, H] each.

    Head by head: one read of whole tokens would be copied twice on CPU, once as it lies and once
    head by head (measured: 1.4 times the time of the attention of 8 rows).
    """

    def read_head(number: int) -> jax.Array:
        first, end = number * head_dim // LANES, -(-(number + 1) * head_dim // LANES)
        index = (layer, slot, start, first, 0)
        rows = jax.lax.dynamic_slice(cache, index, (1, 1, length, end - first, LANES))
        if target_platform() == "tpu":
            # Else XLA gives the layout it wants for one block's products to the whole cache.
            rows = with_layout_constraint(rows, Layout(tuple(range(rows.ndim))))
        offset = number * head_dim - first * LANES
        flat = rows.reshape(length, -1)[:, offset : offset + head_dim]
        return flat if flat.dtype == dtype else jax.lax.bitcast_convert_type(flat, dtype)

    heads = [read_head(number) for number in range(2 * num_kv_heads)]
    return jnp.stack(heads[:num_kv_heads]), jnp.stack(heads[num_kv_heads:])
