"""The cache update as an XLA scatter, which works in place under jit."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_layout import pack_kv


def update_kv_cache(
    cache: jax.Array,  # [L, B, S, R, 128]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
) -> jax.Array:
    """See `api.update_kv_cache`."""
    rows_after = cu_q_lens[slot_ids + 1] - jnp.arange(k.shape[0], dtype=jnp.int32)
    kv_positions = kv_lens[slot_ids] - rows_after
    # Unused rows have slot B, which is out of bounds, so "drop" leaves them out.
    return cache.at[layer, slot_ids, kv_positions].set(pack_kv(k, v, cache), mode="drop")
