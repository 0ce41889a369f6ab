"""The cache update as a Mosaic kernel: each token's rows are one copy from HBM to HBM.

All copies are started before the first one is awaited. They cannot collide, since a step writes
each position of a slot only once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_layout import pack_kv
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.tpu_memory import last_in_hbm

DTYPES = (jnp.float32, jnp.bfloat16, jnp.int8)


def unsupported(cache: jax.Array, k: jax.Array) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if cache.dtype not in DTYPES:
        return f"the cache is {cache.dtype}, and the TPU kernel takes float32, bfloat16 and int8"
    if cache.dtype != k.dtype:
        return f"the cache is {cache.dtype} and k {k.dtype}, and the TPU kernel takes one type"
    return None


def _kernel(
    layer: Any, slots: Any, positions: Any, used: Any, new: Any, _: Any, cache: Any, written: Any
) -> None:
    def copy(row: jax.Array) -> Any:
        target = cache.at[layer[0], slots[row], positions[row]]
        return pltpu.make_async_copy(new.at[row], target, written)

    jax.lax.fori_loop(0, used[0], lambda row, _: copy(row).start(), None)
    jax.lax.fori_loop(0, used[0], lambda row, _: copy(row).wait(), None)


def update_kv_cache(
    cache: jax.Array,  # [L, B, S, R, 128]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1], rows that belong to a slot
) -> jax.Array:
    """See `api.update_kv_cache`."""
    scalars = (jnp.reshape(layer, 1), slot_ids, places, used)
    rows = pack_kv(k, v, cache)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            in_specs=[anywhere, anywhere],
            out_specs=anywhere,
            scratch_shapes=[pltpu.SemaphoreType.DMA(())],
        ),
        out_shape=result_like(cache.shape, cache.dtype, rows, cache),
        input_output_aliases={len(scalars) + 1: 0},
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=2 * rows.size * rows.dtype.itemsize
        ),
        name="update_kv_cache",
    )
    return last_in_hbm(call)(*scalars, rows, cache)
