"""The product with one layer's weights in XLA, which copies the weights first on CPU and GPU."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.products import matmul


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`."""
    return matmul(x, jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False), dtype)
