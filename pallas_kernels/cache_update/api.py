"""The K/V cache: makes a new one, writes each packed row's K/V to its slot, and moves tokens."""

from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, Backends, always_supported, pick
from emsjax.pallas_kernels.cache_update import move, reference
from emsjax.pallas_kernels.checks import check_update
from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache, pack_scales, quantise
from emsjax.pallas_kernels.value_checks import check_values


def _reference() -> Backend:
    return Backend(reference.update_kv_cache, always_supported)


def _reference_scales() -> Backend:
    return Backend(reference.update_scales, always_supported)


def _tpu_scales() -> Backend:
    from emsjax.pallas_kernels.cache_update import tpu_scales

    return Backend(tpu_scales.update_scales, tpu_scales.unsupported)


def _new() -> Backend:
    return Backend(reference.new_cache, always_supported)


def _tpu() -> Backend:
    from emsjax.pallas_kernels.cache_update import tpu

    return Backend(tpu.update_kv_cache, tpu.unsupported)


def _new_on_cpu() -> Backend:
    from emsjax.pallas_kernels.cache_update import cpu

    return Backend(cpu.new_cache, cpu.unsupported)


# A GPU needs no kernel: XLA compiles the reference to one in-place scatter.
BACKENDS: Backends = MappingProxyType({"reference": _reference, "tpu": _tpu})
SCALES: Backends = MappingProxyType({"reference": _reference_scales, "tpu": _tpu_scales})
NEW_CACHES: Backends = MappingProxyType({"reference": _new, "cpu": _new_on_cpu})


class Places(NamedTuple):
    """Where the K/V of packed rows belong; the same in every layer.

    Attributes:
      of_row: int32[T], each row's position in its slot's cache; meaningless for an unused row.
      used: int32[1], how many rows belong to a slot.
    """

    of_row: jax.Array
    used: jax.Array


def cache_places(slot_ids: jax.Array, cu_q_lens: jax.Array, kv_lens: jax.Array) -> Places:
    """Returns where in its slot's cache each packed row's K/V belongs.

    Args:
      slot_ids: int32[T], the slot of each row; B for an unused row.
      cu_q_lens: int32[B+1], where each slot's rows start.
      kv_lens: int32[B], the valid tokens of each slot once these rows are written.
    """
    rows_after = cu_q_lens[slot_ids + 1] - jnp.arange(slot_ids.shape[0], dtype=jnp.int32)
    return Places(kv_lens[slot_ids] - rows_after, cu_q_lens[-1:])


def update_kv_cache(
    cache: Cache,
    k: jax.Array,
    v: jax.Array,
    *,
    layer: jax.Array,
    slot_ids: jax.Array,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    places: Places | None = None,
    backend: str | None = None,
) -> Cache:
    """Writes the K/V of packed rows into the cache, in place if the caller donates it.

    The rows of slot b are the last `cu_q_lens[b+1] - cu_q_lens[b]` of its `kv_lens[b]` tokens.

    Args:
      cache: [L, B, S, R, 128], see `kv_layout`, or an `Int8Cache`, for which K/V are quantised.
      k: new keys [T, K, H].
      v: new values [T, K, H].
      layer: int32[], the layer of the cache to write.
      slot_ids: int32[T], the slot of each row; B for an unused row, which writes nothing.
      cu_q_lens: int32[B+1], the first row of each slot, and then the number of used rows.
      kv_lens: int32[B], valid tokens of each slot, including these rows.
      places: the result of `cache_places` for the last three arguments; None computes it here.
      backend: "reference" (XLA, on any platform) or "tpu". None uses the platform's own if it
        supports the arguments, else the reference.

    Returns:
      The updated cache.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer, slot_ids, cu_q_lens, kv_lens = map(jnp.asarray, (layer, slot_ids, cu_q_lens, kv_lens))
    check_update(cache, k, v, layer, slot_ids, cu_q_lens, kv_lens, places)
    num_rows = k.shape[0]
    check_values(
        cu_q_lens,
        kv_lens,
        layer,
        slot_ids,
        places=places,
        num_rows=num_rows,
        max_q_len=num_rows,
        cache_shape=cache.shape,
    )
    places = cache_places(slot_ids, cu_q_lens, kv_lens) if places is None else places
    where = (layer, slot_ids, *places)
    if not isinstance(cache, Int8Cache):
        return pick("update_kv_cache", BACKENDS, backend, cache, k)(cache, k, v, *where)
    (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
    scales = pack_scales(k_scale, v_scale, cache)
    update = pick("update_kv_cache", BACKENDS, backend, cache.values, k)
    update_scales = pick("update_scales", SCALES, backend, cache.scale, scales)
    return Int8Cache(update(cache.values, k, v, *where), update_scales(cache.scale, scales, *where))


def move_kv(cache: Cache, sources: jax.Array, targets: jax.Array, moved: jax.Array) -> Cache:
    """Moves the K/V of some tokens, in all layers and within each slot.

    Args:
      cache: [L, B, S, R, 128] or an `Int8Cache`.
      sources: int32[B, n], the position of each token in its slot's cache.
      targets: int32[B, n], its new position; a slot's targets differ from each other.
      moved: bool[B, n], which tokens to move; the others' entries mean nothing.

    Returns:
      The updated cache. It is updated in place if the caller donates it.
    """
    return move.move_kv(cache, sources, targets, moved)


def new_cache(spec: jax.ShapeDtypeStruct, backend: str | None = None) -> jax.Array:
    """Returns an array for a cache into which nothing has been written, with any contents.

    Args:
      spec: shape and type of the cache, or of the scales of an int8 cache.
      backend: "reference" (zeros, on any platform) or "cpu" (takes no memory before it is written).
        None uses the platform's own if it is available, else the reference.

    Raises:
      ValueError: the named backend cannot be used.
    """
    return pick("new_cache", NEW_CACHES, backend, spec)(spec)
