"""Products with 4-bit weights as a Mosaic kernel, which streams them straight from the stack.

How groups are multiplied, `tpu_products` says.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.grouped_matmul.offsets import with_offsets
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.pallas_kernels.tpu_products import repeated, unsuitable_groups, with_groups

DTYPES = (jnp.float32, jnp.bfloat16)
# Most outputs and rows of a block, and bytes for the blocks of weights, rows, scales and results.
MOST_OUTS, MOST_ROWS, MOST_BYTES = 512, 256, 12 << 20
# Scales of 8 groups, or of all, make a block. Rows come in multiples of 16.
GROUPS_OF_BLOCK, ROW_MULTIPLE = 8, 16


class Blocks(NamedTuple):
    """The sizes of a block.

    Attributes:
      rows: rows of x.
      outs: outputs.
      depth: inputs.
    """

    rows: int
    outs: int
    depth: int


def unsupported(x: jax.Array, kernels: Grouped) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if x.dtype not in DTYPES:
        return f"the kernel takes float32 and bfloat16, not {x.dtype}"
    size, num_in = kernels.size, x.shape[1]
    if (reason := unsuitable_groups(num_in, size)) is not None:
        return reason
    if blocks_for(x, kernels) is None:
        return f"{num_in} inputs in groups of {size} do not fit {MOST_BYTES} bytes"
    return None


def blocks_for(x: jax.Array, kernels: Grouped) -> Blocks | None:
    """Returns the sizes for rows and weights, or None if no block is small enough."""
    num_rows, most = len(x), MOST_ROWS
    while most >= ROW_MULTIPLE:
        # Weights are read once for all rows of a block: fewer outputs are better than fewer rows.
        share = pl.cdiv(num_rows, pl.cdiv(num_rows, most))
        rows = pl.cdiv(share, ROW_MULTIPLE) * ROW_MULTIPLE
        for outs in (MOST_OUTS, MOST_OUTS // 2, MOST_OUTS // 4):
            fitting = (Blocks(rows, outs, depth) for depth in _depths(kernels))
            found = next(
                (each for each in fitting if _nbytes(each, x, kernels) <= MOST_BYTES), None
            )
            if found is not None:
                return found._replace(outs=min(outs, kernels.shape[1]))
        most //= 2
    return None


def _depths(kernels: Grouped) -> Iterator[int]:
    """Yields the inputs that a block may have, the most first."""
    num_in, size = kernels.shape[2], kernels.size
    yield num_in
    multiple = math.lcm(size * GROUPS_OF_BLOCK, LANES)
    yield from (
        depth for depth in range(num_in // 2, 0, -1) if num_in % depth == depth % multiple == 0
    )


def _nbytes(blocks: Blocks, x: jax.Array, kernels: Grouped) -> int:
    """Returns the bytes of all blocks, one of each in use and one arriving."""
    rows, outs, depth = blocks
    repeated = rows * max(LANES // kernels.size, 1)
    moved = repeated * depth * x.dtype.itemsize + outs * depth // 2
    moved += (depth // kernels.size + rows) * outs * 4
    return 2 * moved + rows * outs * 4


def grouped_matmul(x: jax.Array, kernels: Grouped, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.grouped_matmul`."""
    blocks = blocks_for(x, kernels)
    assert blocks is not None
    num_rows = len(x)
    padded = jnp.pad(x, ((0, -num_rows % blocks.rows), (0, 0)))
    copies = repeated(padded, kernels.size)
    asked = jnp.float32 if kernels.offsets is not None else dtype
    sums = _call(jnp.reshape(layer, 1), copies, kernels, blocks, jnp.dtype(asked))[:num_rows]
    return with_offsets(sums, x, kernels, layer).astype(dtype)


def _call(
    layer: jax.Array, x: jax.Array, kernels: Grouped, blocks: Blocks, dtype: jnp.dtype
) -> jax.Array:
    repeats, num_rows, num_in = x.shape
    num_out, size = kernels.shape[1], kernels.size
    rows, outs, depth = blocks
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(num_rows // rows, pl.cdiv(num_out, outs), num_in // depth),
            in_specs=[
                pl.BlockSpec((repeats, rows, depth), lambda row, out, part, layer: (0, row, part)),
                pl.BlockSpec(
                    (None, outs, depth), lambda row, out, part, layer: (layer[0], out, part)
                ),
                pl.BlockSpec(
                    (None, depth // size, outs), lambda row, out, part, layer: (layer[0], part, out)
                ),
            ],
            out_specs=pl.BlockSpec((rows, outs), lambda row, out, part, layer: (row, out)),
            scratch_shapes=[pltpu.VMEM((rows, outs), jnp.float32)],
        ),
        out_shape=result_like((num_rows, num_out), dtype, x, kernels.values),
        cost_estimate=_cost(x, kernels, num_rows // rows),
        name="grouped_matmul",
    )
    return call(layer, x, kernels.values, kernels.scales)


def _kernel(layer: Any, x: Any, values: Any, scales: Any, out: Any, sums: Any) -> None:
    """One block of rows, outputs and inputs."""
    del layer

    @pl.when(pl.program_id(2) == 0)
    def begin() -> None:
        sums[...] = jnp.zeros_like(sums)

    sums[...] = with_groups(sums[...], x, values, scales)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def write() -> None:
        out[...] = sums[...].astype(out.dtype)


def _cost(x: jax.Array, kernels: Grouped, times: int) -> pl.CostEstimate:
    """The cost if weights are read so many times."""
    _, num_out, num_in = kernels.shape
    read = num_out * num_in // 2 + num_in // kernels.size * num_out * 4
    return pl.CostEstimate(
        flops=2 * x.size * num_out,
        transcendentals=0,
        bytes_accessed=times * read + x.size * x.dtype.itemsize,
    )
