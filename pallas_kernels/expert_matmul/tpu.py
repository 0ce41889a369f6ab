"""Products with experts as a Mosaic kernel, which streams their weights straight from the stack.

Tiles of one expert follow each other, and a block of weights that the next tile needs as well is
not read again. Unused tiles at the end read and write nothing. Weights in 4 bits are multiplied a
group at a time, see `tpu_products`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.expert_matmul.tiles import Tiles
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.quantised import Grouped, bits_of
from emsjax.pallas_kernels.tpu_products import (
    product,
    repeated,
    unsuitable_groups,
    with_groups,
)
from emsjax.pallas_kernels.tuned import tuned

DTYPES = (jnp.float32, jnp.bfloat16)
# Bytes of a block of weights, large enough that its copy hides all else, and bytes for the two
# blocks each of weights and rows, one in use and one arriving.
BLOCK_BYTES, MOST_BYTES = 3 << 20, 14 << 20
# Most outputs of a block of weights in 4 bits, whose sums stay in registers.
MOST_OUTS = 512


class Sizes(NamedTuple):
    """What the block of weights depends on: those of an expert [out, in], and their bytes."""

    num_out: int
    num_in: int
    itemsize: int


class Block(NamedTuple):
    """The size that may be tuned: how many outputs a block of weights has."""

    outs: int


def unsupported(x: jax.Array, kernels: jax.Array | Grouped) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if x.dtype not in DTYPES:
        return f"the kernel takes float32 and bfloat16, not {x.dtype}"
    num_in, outs = x.shape[-1], _outs_of_block(kernels)
    rows = num_in * x.shape[1] * x.dtype.itemsize
    if isinstance(kernels, Grouped):
        if (reason := unsuitable_groups(num_in, kernels.size)) is not None:
            return reason
        copies = max(LANES // kernels.size, 1)
        block = copies * rows + outs * (num_in // 2 + 4 * num_in // kernels.size)
    else:
        block = rows + num_in * outs * kernels.dtype.itemsize
    if 2 * block > MOST_BYTES:
        return f"{num_in} inputs of {outs} outputs take {2 * block} bytes, and {MOST_BYTES} fit"
    return None


def _outs_of_block(kernels: jax.Array | Grouped) -> int:
    """Returns how many outputs a block of weights has: all, or whole lanes."""
    num_out, num_in = kernels.shape[2:]
    if isinstance(kernels, Grouped):
        return min(num_out, MOST_OUTS)
    sizes = Sizes(num_out, num_in, kernels.dtype.itemsize)
    lanes = BLOCK_BYTES // (LANES * num_in * kernels.dtype.itemsize)
    usual = min(num_out, max(lanes, 1) * LANES)
    return tuned("expert_matmul/tpu", sizes, Block(usual)).outs


def expert_matmul(
    x: jax.Array, kernels: jax.Array | Grouped, layer: jax.Array, tiles: Tiles, dtype: jnp.dtype
) -> jax.Array:
    """See `api.expert_matmul`."""
    num_tiles, size, num_in = x.shape
    num_out, outs = kernels.shape[2], _outs_of_block(kernels)

    def tile_at(tile: Any, used: Any) -> Any:
        return jnp.minimum(tile, jnp.maximum(used[0] - 1, 0))

    def weights(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return layer[0], experts[tile], block, 0

    def scales(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return layer[0], experts[tile], 0, block

    def results(block: Any, tile: Any, layer: Any, experts: Any, used: Any) -> tuple:
        return tile_at(tile, used), 0, block

    kernel: Any = _kernel
    given: list[jax.Array]
    if isinstance(kernels, Grouped):
        kernel = _kernel_of_groups
        given = [repeated(x, kernels.size), kernels.values, kernels.scales]
    else:
        given = [x, kernels]
    rows, values, *of_groups = given
    of_rows = pl.BlockSpec(
        (None, *rows.shape[1:]),
        lambda block, tile, layer, experts, used: (tile_at(tile, used), *[0] * (rows.ndim - 1)),
    )
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(num_out, outs), num_tiles),
            in_specs=[
                of_rows,
                pl.BlockSpec((None, None, outs, num_in), weights),
                *[pl.BlockSpec((None, None, each.shape[2], outs), scales) for each in of_groups],
            ],
            out_specs=pl.BlockSpec((None, size, outs), results),
        ),
        out_shape=result_like((num_tiles, size, num_out), dtype, x, values),
        cost_estimate=_cost(rows, values),
        name="expert_matmul",
    )
    return call(jnp.reshape(layer, 1), tiles.experts, tiles.used, *given)


def _kernel(layer: Any, experts: Any, used: Any, x: Any, weights: Any, out: Any) -> None:
    """One tile and one block of outputs."""
    del layer, experts

    @pl.when(pl.program_id(1) < used[0])
    def multiply() -> None:
        rows = x[...]
        out[...] = product(rows, weights[...].astype(rows.dtype)).astype(out.dtype)


def _kernel_of_groups(
    layer: Any, experts: Any, used: Any, x: Any, values: Any, scales: Any, out: Any
) -> None:
    """One tile and one block of outputs, of weights in 4 bits."""
    del layer, experts

    @pl.when(pl.program_id(1) < used[0])
    def multiply() -> None:
        none = jnp.zeros(out.shape, jnp.float32)
        out[...] = with_groups(none, x, values, scales).astype(out.dtype)


def _cost(x: jax.Array, kernels: jax.Array) -> pl.CostEstimate:
    """The cost if every tile has rows and another expert."""
    weights = min(len(x), kernels.shape[1]) * kernels.shape[2] * kernels.shape[3]
    return pl.CostEstimate(
        flops=2 * x.size * kernels.shape[2],
        transcendentals=0,
        bytes_accessed=weights * bits_of(kernels.dtype) // 8 + x.size * x.dtype.itemsize,
    )
