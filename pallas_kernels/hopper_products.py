"""Products of few rows with weights from a stack, as a Mosaic GPU kernel for Hopper.

XLA copies a layer's weights out of the stack before it multiplies them, which takes longer than the
product. Here each thread block streams its part of the weights through shared memory, straight from
the stack. The weights are the left operand, so that no part of the tensor cores is idle when there
are few rows. Weights in int8 or 4 bits are converted in registers, so that memory and shared memory
hold bytes; a group's scales multiply its sums. How a sum is divided depends only on the weights'
shape, so the bits of a row's result do not depend on the number of rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.tensor_cores import TENSOR_CORE_ROWS
from emsjax.pallas_kernels.tuned import tuned

# Maximum rows of a thread block. With more, the sums would not fit into its registers together with
# the product that is added to them.
MOST_ROWS = 64
# Most thread blocks that read the same weights for different rows. The weights then come from
# memory once for all of them.
MOST_SHARES = 4
# The number of rows in a product is a multiple of this.
ROW_MULTIPLE = 8
# Enough thread blocks to keep the memory busy; an H100 or H200 has 132 multiprocessors.
ENOUGH_BLOCKS = 96
# Shared memory to use, and the number of blocks of weights and rows in flight or in use. Blocks of
# int8 are half as large, so twice as many are needed to keep the memory as busy.
SHARED_BYTES, STAGES, STAGES_INT8 = 200 << 10, 3, 6
AXES = ("tile", "part", "share")


class Blocks(NamedTuple):
    """The division of the work among thread blocks.

    Attributes:
      out: rows of the weights, and so outputs, of a thread block.
      depth: columns of the weights that it multiplies at a time.
      parts: thread blocks among which the columns are divided.
      rows: rows of x of a thread block.
      stages: blocks of weights and rows in flight or in use.
    """

    out: int
    depth: int
    parts: int
    rows: int
    stages: int


class Sizes(NamedTuple):
    """What the division of sums depends on: weights [out, in], and whether they are int8."""

    num_out: int
    num_in: int
    int8: bool


class Split(NamedTuple):
    """The block sizes that may be tuned, see `Blocks`."""

    parts: int


def blocks_for(num_out: int, num_in: int, num_rows: int, int8: bool = False) -> Blocks:
    """Returns the sizes for T rows and weights [out, in]; only `rows` and `stages` depend on T."""
    out = 2 * TENSOR_CORE_ROWS if num_out % 128 == 0 else TENSOR_CORE_ROWS
    parts = 1
    while num_out // out * parts < ENOUGH_BLOCKS and num_in % (2 * parts * 128) == 0:
        parts *= 2
    parts = tuned("layer_matmul/gpu", Sizes(num_out, num_in, int8), Split(parts)).parts
    depth = 128 if num_in // parts % 128 == 0 else 64
    share = pl.cdiv(num_rows, pl.cdiv(num_rows, MOST_ROWS))
    rows = pl.cdiv(share, ROW_MULTIPLE) * ROW_MULTIPLE
    room = SHARED_BYTES - out * rows * 4
    if int8:
        stages = min(room // ((out + 2 * rows) * depth), STAGES_INT8)
    else:
        stages = min(room // ((out + rows) * depth * 2), STAGES)
    return Blocks(out, depth, parts, rows, stages)


def sums_of(
    layer: jax.Array,
    x: jax.Array,
    kernels: jax.Array,
    blocks: Blocks,
    scales: jax.Array | None = None,
    name: str = "layer_matmul",
) -> jax.Array:
    """Multiplies rows with weights from a stack.

    Args:
      layer: int32[1], which weights to use.
      x: rows [T, in], a multiple of `blocks.rows`.
      kernels: a stack of weights [L, out, in].
      blocks: the sizes.
      scales: of groups, float32[L, G, out]; None for weights without. `blocks.depth` columns are
        all in one group.
      name: of the kernel in programs.

    Returns:
      The sums over each part of the columns, float32[parts, T, out].
    """
    num_rows, (_, num_out, _) = x.shape[0], kernels.shape
    call = plgpu.kernel(
        functools.partial(_kernel, blocks=blocks),
        out_type=result_like((blocks.parts, num_rows, num_out), jnp.float32, x, kernels),
        scratch_types=[plgpu.SMEM((blocks.rows, blocks.out), jnp.float32)],
        grid=(num_out // blocks.out, blocks.parts, num_rows // blocks.rows),
        grid_names=AXES,
        kernel_name=name,
    )
    return call(layer, x, kernels, *(() if scales is None else (scales,)))


def _kernel(layer: Any, x: Any, kernels: Any, *others: Any, blocks: Blocks) -> None:
    """One thread block: its outputs for its rows, summed over one part of the columns."""
    *scales, out, shared = others
    tile, part, share = (jax.lax.axis_index(name) for name in AXES)
    steps = x.shape[1] // blocks.parts // blocks.depth

    def block(indices: Any, weights: Any, rows: Any, *scales_and_sums: Any) -> jax.Array:
        del indices
        *group, sums = scales_and_sums
        if kernels.dtype in (jnp.int8, jnp.int4):
            weights = hopper.widened(weights, x.dtype)
        product = hopper.product_transposed(weights, rows)
        for scale in group:
            product *= hopper.of_rows(scale, product.shape)
        return sums + product

    def columns(rows: int, first: Any, dtype: jnp.dtype) -> plgpu.BlockSpec:
        shape = (rows, blocks.depth)
        transforms = hopper.transforms(blocks.depth, dtype)
        return plgpu.BlockSpec(shape, lambda i: (first, part * steps + i), transforms=transforms)

    def group_of(i: Any) -> tuple:
        steps_of_group = x.shape[1] // blocks.depth // scales[0].shape[1]
        return (part * steps + i) // steps_of_group, tile

    nothing = jnp.zeros((blocks.out, blocks.rows), jnp.float32)
    sums = plgpu.emit_pipeline(
        block,
        grid=(steps,),
        in_specs=[
            columns(blocks.out, tile, kernels.dtype),
            columns(blocks.rows, share, x.dtype),
            *(plgpu.BlockSpec((1, blocks.out), group_of) for _ in scales),
        ],
        max_concurrent_steps=min(blocks.stages, steps),
        init_carry=plgpu.layout_cast(nothing, plgpu.Layout.WGMMA),
    )(kernels.at[layer[0]], x, *(each.at[layer[0]] for each in scales))
    # Row by row, as everything after the product reads it.
    hopper.write_transposed(sums, shared)
    at = pl.ds(share * blocks.rows, blocks.rows), pl.ds(tile * blocks.out, blocks.out)
    hopper.store(shared, out.at[(part, *at)])
