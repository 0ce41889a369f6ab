"""The product with one layer's weights in XLA, which copies the weights first on CPU and GPU."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.products import matmul


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`."""
    kernel = jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False)
    if kernel.dtype == jnp.int8:
        # Exact: bfloat16 holds whole numbers up to 256. On a TPU the conversion becomes a part of
        # the product, and so does the slice of the stack.
        kernel = kernel.astype(x.dtype)
    return matmul(x, kernel, dtype)
