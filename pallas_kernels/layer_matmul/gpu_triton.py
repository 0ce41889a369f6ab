"""Multiplies few rows with one layer's weights on any GPU since Ampere, see `triton_products`."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import triton_products
from emsjax.pallas_kernels.few_rows import Given, added, unsuitable
from emsjax.pallas_kernels.triton_products import MOST_ROWS, MOST_SHARES, OUT, blocks_for, sums_of


def unsupported(x: Given, kernels: Given) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    most = MOST_ROWS * MOST_SHARES
    return triton_products.unsupported(kernels) or unsuitable(x, kernels, most, OUT)


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`."""
    return added(layer_sums(x, kernels, layer))[: len(x)].astype(dtype)


def layer_sums(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> jax.Array:
    """See `api.layer_sums`."""
    _, num_out, num_in = kernels.shape
    blocks = blocks_for(num_out, num_in, len(x))
    return sums_of(x, kernels, jnp.reshape(layer, 1), blocks)
