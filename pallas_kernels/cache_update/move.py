"""Moves within the cache: the accepted path of a token tree becomes one piece."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_rows import LANES


def move_kv(cache: Cache, sources: jax.Array, targets: jax.Array, moved: jax.Array) -> Cache:
    """Moves the K/V of some tokens, in all layers and within each slot.

    The moves go layer by layer. All sources of a layer are read before its first target is written.
    Without moves, no layer is touched. See `api.move_kv` for the arguments.
    """
    num_slots, capacity = cache.shape[1:3]
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    sources = jnp.where(moved, sources, 0)
    # Place S does not exist, so that `mode="drop"` skips what is not moved.
    targets = jnp.where(moved, targets, capacity)

    def move_values(layer: jax.Array, values: jax.Array) -> jax.Array:
        return values.at[layer, slots, targets].set(values[layer, slots, sources], mode="drop")

    def move_scales(layer: jax.Array, scale: jax.Array) -> jax.Array:
        # The scales' capacity is rounded up, so place S may exist in them.
        tiles = jnp.where(moved, targets // LANES, scale.shape[2])
        there = scale[layer, slots, sources // LANES, :, sources % LANES]
        return scale.at[layer, slots, tiles, :, targets % LANES].set(there, mode="drop")

    def move_layer(layer: jax.Array, cache: Cache) -> Cache:
        if not isinstance(cache, Int8Cache):
            return move_values(layer, cache)
        return Int8Cache(move_values(layer, cache.values), move_scales(layer, cache.scale))

    layers = jnp.where(moved.any(), cache.shape[0], 0).astype(jnp.int32)
    return jax.lax.fori_loop(jnp.int32(0), layers, move_layer, cache)
