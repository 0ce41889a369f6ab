"""Multiplies few rows with 4-bit weights on a Hopper GPU, see `hopper_products`."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.few_rows import added, unsuitable
from emsjax.pallas_kernels.grouped_matmul.offsets import with_offsets
from emsjax.pallas_kernels.hopper_products import (
    MOST_ROWS,
    MOST_SHARES,
    Blocks,
    blocks_for,
    sums_of,
)
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.pallas_kernels.tensor_cores import TENSOR_CORE_ROWS

# Groups of this many inputs, or of a multiple.
GROUP_MULTIPLE = 64


def unsupported(x: jax.Array, kernels: Grouped) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if kernels.size % GROUP_MULTIPLE:
        return f"the kernel takes groups of multiples of {GROUP_MULTIPLE}, not {kernels.size}"
    most = MOST_ROWS * MOST_SHARES
    return hopper.no_hopper() or unsuitable(x, kernels.values, most, TENSOR_CORE_ROWS)


def grouped_matmul(x: jax.Array, kernels: Grouped, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.grouped_matmul`."""
    num_rows = x.shape[0]
    blocks = blocks_of(kernels, num_rows)
    padded = jnp.pad(x, ((0, -num_rows % blocks.rows), (0, 0)))
    number = jnp.reshape(layer, 1)
    parts = sums_of(number, padded, kernels.values, blocks, kernels.scales, "grouped_matmul")
    return with_offsets(added(parts)[:num_rows], x, kernels, layer).astype(dtype)


def blocks_of(kernels: Grouped, num_rows: int) -> Blocks:
    """Returns the sizes for T rows: a block's columns lie in one group."""
    _, num_out, num_in = kernels.shape
    blocks = blocks_for(num_out, num_in, num_rows, int8=True)
    return blocks._replace(depth=GROUP_MULTIPLE) if kernels.size % blocks.depth else blocks
