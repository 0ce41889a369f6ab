"""The product with one layer's weights in XLA, which on a GPU copies them first."""

import jax

from emsjax.pallas_kernels.products import matmul


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> jax.Array:
    """See `api.layer_matmul`."""
    return matmul(x, jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False))
