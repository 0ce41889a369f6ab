"""Multiplies few rows with one layer's weights on a Hopper GPU, see `hopper_products`."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import hopper
from emsjax.pallas_kernels.few_rows import added, unsuitable
from emsjax.pallas_kernels.hopper_products import MOST_ROWS, MOST_SHARES, blocks_for, sums_of
from emsjax.pallas_kernels.tensor_cores import TENSOR_CORE_ROWS


def unsupported(x: jax.Array, kernels: jax.Array) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    most = MOST_ROWS * MOST_SHARES
    return hopper.no_hopper() or unsuitable(x, kernels, most, TENSOR_CORE_ROWS)


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`."""
    return added(layer_sums(x, kernels, layer))[: len(x)].astype(dtype)


def layer_sums(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> jax.Array:
    """See `api.layer_sums`."""
    num_rows, (_, num_out, num_in) = x.shape[0], kernels.shape
    blocks = blocks_for(num_out, num_in, num_rows, kernels.dtype == jnp.int8)
    x = jnp.pad(x, ((0, -num_rows % blocks.rows), (0, 0)))
    return sums_of(jnp.reshape(layer, 1), x, kernels, blocks)
