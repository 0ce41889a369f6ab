"""The cache update as an XLA scatter, which works in place under jit."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_layout import pack_kv
from emsjax.pallas_kernels.kv_rows import LANES


def update_kv_cache(
    cache: jax.Array,  # [L, B, S, R, 128]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1]
) -> jax.Array:
    """See `api.update_kv_cache`."""
    del used
    # Unused rows have slot B, which is out of bounds, so "drop" leaves them out.
    return cache.at[layer, slot_ids, places].set(pack_kv(k, v, cache), mode="drop")


def update_scales(
    scale: jax.Array,  # float32[L, B, S / 128, R, 128]
    new: jax.Array,  # float32[T, R]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1]
) -> jax.Array:
    """Writes the scales of packed rows into `Int8Cache.scale`."""
    del used
    tiles, lanes = places // LANES, places % LANES
    return scale.at[layer, slot_ids, tiles, :, lanes].set(new, mode="drop")


def new_cache(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """See `api.new_cache`."""
    return jnp.zeros(spec.shape, spec.dtype)
