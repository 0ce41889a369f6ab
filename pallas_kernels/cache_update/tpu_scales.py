"""The update of an int8 cache's scales as a Mosaic kernel.

The scales of 128 tokens share a tile [R, 128], a lane for each token, and nothing smaller than a
tile can be copied. So the kernel reads the tiles of all rows, sets the rows' lanes, and writes the
tiles back. An XLA scatter would do this for one row after another.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like

# A core has at least 16 MiB of VMEM.
MOST_BYTES = 8 << 20


def unsupported(scale: jax.Array, new: jax.Array) -> str | None:
    """Returns why the kernel cannot be used, or None if it can."""
    return too_many(scale, new.shape[0])


def too_many(scale: jax.Array, num_rows: int) -> str | None:
    """Returns why the kernel cannot take so many rows, or None if it can."""
    needed = (_most_tiles(scale, num_rows) + pl.cdiv(num_rows, LANES)) * _tile_bytes(scale)
    if needed > MOST_BYTES:
        return f"{num_rows} rows need {needed} bytes of VMEM, and {MOST_BYTES} are there"
    return None


def _most_tiles(scale: jax.Array, num_rows: int) -> int:
    """Returns the most tiles of 128 tokens that the T rows of B slots can lie in."""
    num_slots = scale.shape[1]
    # The rows of a slot begin anywhere in a tile.
    return min(num_rows, 2 * num_slots + num_rows // LANES)


def _tile_bytes(scale: jax.Array) -> int:
    return int(scale.shape[3]) * LANES * scale.dtype.itemsize


def _kernel(
    layer: Any,
    slots: Any,
    positions: Any,
    used: Any,
    new: Any,
    _: Any,
    scale: Any,
    tiles: Any,
    arrived: Any,
) -> None:
    def begins(row: jax.Array) -> jax.Array:
        """Whether no earlier row lies in this row's tile."""
        before = jnp.maximum(row - 1, 0)
        other_slot = slots[row] != slots[before]
        return (row == 0) | other_slot | (positions[row] % LANES == 0)

    def each_tile(act: Callable[[Any, Any], None]) -> None:
        """Calls `act` with each tile in HBM that rows lie in and its copy in VMEM."""

        def visit(row: jax.Array, count: jax.Array) -> jax.Array:
            first = begins(row)

            @pl.when(first)
            def _act() -> None:
                tile = scale.at[layer[0], slots[row], positions[row] // LANES]
                act(tile, tiles.at[count])

            return count + first.astype(jnp.int32)

        jax.lax.fori_loop(0, used[0], visit, jnp.zeros((), jnp.int32))

    def set_lane(row: jax.Array, count: jax.Array) -> jax.Array:
        count = count + begins(row).astype(jnp.int32)
        lane = jax.lax.broadcasted_iota(jnp.int32, tiles.shape[1:], 1)
        # A row's scales are a column of `new`. All other lanes are zeros in the sum.
        column = jnp.where(lane == row % LANES, new[row // LANES], 0.0)
        column = column.sum(axis=1, keepdims=True)
        tiles[count] = jnp.where(lane == positions[row] % LANES, column, tiles[count])
        return count

    def copy(source: Any, target: Any) -> Any:
        return pltpu.make_async_copy(source, target, arrived)

    each_tile(lambda tile, here: copy(tile, here).start())
    each_tile(lambda tile, here: copy(tile, here).wait())
    jax.lax.fori_loop(0, used[0], set_lane, jnp.full((), -1, jnp.int32))
    each_tile(lambda tile, here: copy(here, tile).start())
    each_tile(lambda tile, here: copy(here, tile).wait())


def update_scales(
    scale: jax.Array,  # float32[L, B, S / 128, R, 128]
    new: jax.Array,  # float32[T, R]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1], rows that belong to a slot
) -> jax.Array:
    """Writes the scales of packed rows into `Int8Cache.scale`."""
    num_rows, rows = new.shape
    across = jnp.pad(new, ((0, -num_rows % LANES), (0, 0)))
    across = across.reshape(-1, LANES, rows).swapaxes(1, 2)
    return write_scales(scale, across, layer, slot_ids, places, used)


def write_scales(
    scale: jax.Array,  # float32[L, B, S / 128, R, 128]
    across: jax.Array,  # float32[T / 128, R, 128]
    layer: jax.Array,  # int32[]
    slot_ids: jax.Array,  # int32[T]
    places: jax.Array,  # int32[T]
    used: jax.Array,  # int32[1], rows that belong to a slot
) -> jax.Array:
    """Writes the scales of packed rows, which lie along the lanes as in the cache."""
    scalars = (jnp.reshape(layer, 1), slot_ids, places, used)
    rows, most = across.shape[1], _most_tiles(scale, slot_ids.shape[0])
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            in_specs=[pl.BlockSpec(memory_space=pltpu.VMEM), anywhere],
            out_specs=anywhere,
            scratch_shapes=[
                pltpu.VMEM((most, rows, LANES), scale.dtype),
                pltpu.SemaphoreType.DMA(()),
            ],
        ),
        out_shape=result_like(scale.shape, scale.dtype, across, scale),
        input_output_aliases={len(scalars) + 1: 0},
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=2 * most * _tile_bytes(scale)
        ),
        name="update_scales",
    )
    return call(*scalars, across, scale)
