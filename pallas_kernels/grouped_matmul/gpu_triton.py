"""Multiplies few rows with 4-bit weights on any GPU since Ampere, see `triton_products`."""

import math

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import triton_products
from emsjax.pallas_kernels.few_rows import added, unsuitable
from emsjax.pallas_kernels.grouped_matmul.offsets import with_offsets
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.pallas_kernels.triton_products import (
    MOST_ROWS,
    MOST_SHARES,
    OUT,
    blocks_for,
    sums_of,
    unsuitable_groups,
)


def unsupported(x: jax.Array, kernels: Grouped) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    values, most = kernels.values, MOST_ROWS * MOST_SHARES
    reason = unsuitable_groups(kernels.size) or triton_products.unsupported(values)
    return reason or unsuitable(x, values, most, OUT)


def grouped_matmul(x: jax.Array, kernels: Grouped, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.grouped_matmul`."""
    num_rows, (_, num_out, num_in) = x.shape[0], kernels.shape
    blocks = blocks_for(num_out, num_in, num_rows)
    blocks = blocks._replace(depth=math.gcd(blocks.depth, kernels.size))
    number = jnp.reshape(layer, 1)
    parts = sums_of(x, kernels.values, number, blocks, scales=kernels.scales, name="grouped_matmul")
    return with_offsets(added(parts)[:num_rows], x, kernels, layer).astype(dtype)
