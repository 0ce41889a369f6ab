"""Makes floats of one layer's 4-bit weights, and multiplies with these."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.products import matmul
from emsjax.pallas_kernels.quantised import Grouped, floats


def multiply(x: jax.Array, kernels: Grouped, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.grouped_matmul`."""
    kernel = jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False), kernels
    )
    return matmul(x, floats(kernel).astype(x.dtype), dtype)
