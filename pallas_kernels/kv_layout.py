"""How the keys and values of one token lie in the cache.

The cache is `[L, B, S, R, 128]`: layer, slot, position, then R rows of 128 lanes that hold the
token's keys (K heads of width H, one after the other), then its values, then padding. One token
is one contiguous, aligned piece, so that writing it at any position is a single copy.

R is rounded up to 2, 4 or a multiple of 8 on TPU, where other row counts make XLA keep the cache
in a permuted layout and transpose all of it around every kernel.
"""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import target_platform

LANES = 128


def rows_per_token(num_kv_heads: int, head_dim: int) -> int:
    """Rows of 128 lanes that one token's keys and values take on the target platform.

    Args:
      num_kv_heads: K.
      head_dim: H.
    """
    rows = -(-2 * num_kv_heads * head_dim // LANES)
    if target_platform() != "tpu":
        return rows
    return next((r for r in (2, 4) if rows <= r), -(-rows // 8) * 8)


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


def unpack_kv(
    rows: jax.Array, num_kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """The inverse of `pack_kv`: rows [S, R, 128] to keys and values [S, K, H] in `dtype`."""
    width = num_kv_heads * head_dim
    flat = rows.reshape(rows.shape[0], -1)[:, : 2 * width]
    if flat.dtype != dtype:
        flat = jax.lax.bitcast_convert_type(flat, dtype)
    kv = flat.reshape(-1, 2, num_kv_heads, head_dim)
    return kv[:, 0], kv[:, 1]
