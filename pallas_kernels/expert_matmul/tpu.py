"""Products with experts as a Mosaic kernel, which streams their weights straight from the stack.

Tiles of one expert follow each other, and a block of weights that the next tile needs as well is
not read again. Unused tiles at the end read and write nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.expert_matmul.tiles import Tiles
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.tuned import tuned

DTYPES = (jnp.float32, jnp.bfloat16)
# Bytes of a block of weights, large enough that its copy hides all else, and bytes for the two
# blocks each of weights and rows, one in use and one arriving.
BLOCK_BYTES, MOST_BYTES = 3 << 20, 14 << 20


class Sizes(NamedTuple):
    """What the block of weights depends on: those of an expert [out, in], and their bytes."""

    num_out: int
    num_in: int
    itemsize: int


class Block(NamedTuple):
    """The size that may be tuned: how many outputs a block of weights has."""

    outs: int


def unsupported(x: jax.Array, kernels: jax.Array) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if x.dtype not in DTYPES:
        return f"the kernel takes float32 and bfloat16, not {x.dtype}"
    num_in, outs = x.shape[-1], _outs_of_block(kernels)
    block = num_in * (x.shape[1] * x.dtype.itemsize + outs * kernels.dtype.itemsize)
    if 2 * block > MOST_BYTES:
        return f"{num_in} inputs of {outs} outputs take {2 * block} bytes, and {MOST_BYTES} fit"
    return None


def _outs_of_block(kernels: jax.Array) -> int:
    """Returns how many outputs a block of weights has: all, or whole lanes."""
    num_out, num_in = kernels.shape[2:]
    sizes = Sizes(num_out, num_in, kernels.dtype.itemsize)
    lanes = BLOCK_BYTES // (LANES * num_in * kernels.dtype.itemsize)
    usual = min(num_out, max(lanes, 1) * LANES)
    return tuned("expert_matmul/tpu", sizes, Block(usual)).outs


def expert_matmul(
    x: jax.Array, kernels: jax.Array, layer: jax.Array, tiles: Tiles, dtype: jnp.dtype
) -> jax.Array:
    """See `api.expert_matmul`."""
    num_tiles, size, num_in = x.shape
    num_out, outs = kernels.shape[2], _outs_of_block(kernels)

    def tile_at(tile: Any, used: Any) -> Any:
        return jnp.minimum(tile, jnp.maximum(used[0] - 1, 0))

    def rows(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return tile_at(tile, used), 0, 0

    def weights(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return layer[0], experts[tile], block, 0

    def results(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return tile_at(tile, used), 0, block

    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(num_out, outs), num_tiles),
            in_specs=[
                pl.BlockSpec((None, size, num_in), rows),
                pl.BlockSpec((None, None, outs, num_in), weights),
            ],
            out_specs=pl.BlockSpec((None, size, outs), results),
        ),
        out_shape=result_like((num_tiles, size, num_out), dtype, x, kernels),
        cost_estimate=_cost(x, kernels),
        name="expert_matmul",
    )
    return call(jnp.reshape(layer, 1), tiles.experts, tiles.used, x, kernels)


def _kernel(layer: Any, experts: Any, used: Any, x: Any, weights: Any, out: Any) -> None:
    """One tile and one block of outputs."""
    del layer, experts

    @pl.when(pl.program_id(1) < used[0])
    def multiply() -> None:
        rows = x[...]
        # Always set, because the compiler rejects a caller's other precisions for 16-bit numbers.
        exact = rows.dtype == jnp.float32
        product = jax.lax.dot_general(
            rows,
            weights[...].astype(rows.dtype),
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )
        out[...] = product.astype(out.dtype)


def _cost(x: jax.Array, kernels: jax.Array) -> pl.CostEstimate:
    """The cost if every tile has rows and another expert."""
    weights = min(len(x), kernels.shape[1]) * kernels.shape[2] * kernels.shape[3]
    return pl.CostEstimate(
        flops=2 * x.size * kernels.shape[2],
        transcendentals=0,
        bytes_accessed=weights * kernels.dtype.itemsize + x.size * x.dtype.itemsize,
    )
