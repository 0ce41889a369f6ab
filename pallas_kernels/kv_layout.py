"""The layout of the K/V cache.

The cache is `[L, B, S, R, 128]`: layer, slot, position, then R rows of 128 lanes that hold one
token's keys (K heads of width H, one after the other), its values, and padding. Each token is one
contiguous, aligned piece, so that writing it at any position is a single copy.

On TPU, R is rounded up to 2, 4 or a multiple of 8. With other row counts XLA keeps the cache in a
permuted layout and transposes all of it around every kernel. In int8 the fewest rows are 4.
`int8_cache` describes the scales of an int8 cache.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.kv_rows import LANES, token_rows


def rows_per_token(num_kv_heads: int, head_dim: int, int8: bool = False) -> int:
    """Returns R, the rows of 128 lanes of one token in the cache on the target platform.

    Args:
      num_kv_heads: K.
      head_dim: H.
      int8: whether the cache is int8.
    """
    return token_rows(num_kv_heads, head_dim, target_platform(), int8)


def storage_dtypes(dtype: jnp.dtype) -> tuple[jnp.dtype, ...]:
    """Element types that a cache may have: the model's dtype, or uint16 with the same bits."""
    own = jnp.dtype(dtype)
    return (own, jnp.dtype(jnp.uint16)) if own.itemsize == 2 else (own,)


def storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the element type of the cache for a model that computes in `dtype`.

    On CPU, XLA widens a whole bfloat16 cache to float32 and back at every scatter (measured: 3 s
    per step for SmolLM2), so the same 16 bits are stored as integers there.
    """
    widened = target_platform() == "cpu" and dtype == jnp.bfloat16
    return jnp.dtype(jnp.uint16 if widened else dtype)


def pack_kv(k: jax.Array, v: jax.Array, cache: jax.Array) -> jax.Array:
    """Packs new keys and values, each [T, K, H], into rows [T, R, 128] of `cache`'s type."""
    num_tokens = k.shape[0]
    rows = cache.shape[-2]
    flat = jnp.concatenate([k.reshape(num_tokens, -1), v.reshape(num_tokens, -1)], axis=1)
    flat = jnp.pad(flat, ((0, 0), (0, rows * LANES - flat.shape[1])))
    if flat.dtype != cache.dtype:
        flat = jax.lax.bitcast_convert_type(flat, cache.dtype)
    return flat.reshape(num_tokens, rows, LANES)


def unpack_kv(
    rows: jax.Array, num_kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values [..., K, H] in `dtype` from rows [..., R, 128] of a cache."""
    flat = rows.reshape(*rows.shape[:-2], -1)[..., : 2 * num_kv_heads * head_dim]
    flat = flat if flat.dtype == dtype else jax.lax.bitcast_convert_type(flat, dtype)
    both = flat.reshape(*flat.shape[:-1], 2, num_kv_heads, head_dim)
    return both[..., 0, :, :], both[..., 1, :, :]


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
    """Reads keys and values of `length` tokens of a slot, starting at position `start`.

    Each head is read separately. On CPU, a read of whole tokens would be copied twice, once as
    stored and once head by head (measured: 1.4 times the time of the attention of 8 rows).

    Returns:
      Keys and values, each [K, length, H] in `dtype`.
    """

    def read_head(number: int) -> jax.Array:
        first, end = number * head_dim // LANES, -(-(number + 1) * head_dim // LANES)
        index = (layer, slot, start, first, 0)
        rows = jax.lax.dynamic_slice(cache, index, (1, 1, length, end - first, LANES))
        if target_platform() == "tpu":
            # Without this, XLA changes the whole cache to the layout that one block's products use.
            rows = with_layout_constraint(rows, Layout(tuple(range(rows.ndim))))
        offset = number * head_dim - first * LANES
        flat = rows.reshape(length, -1)[:, offset : offset + head_dim]
        return flat if flat.dtype == dtype else jax.lax.bitcast_convert_type(flat, dtype)

    heads = [read_head(number) for number in range(2 * num_kv_heads)]
    return jnp.stack(heads[:num_kv_heads]), jnp.stack(heads[num_kv_heads:])
