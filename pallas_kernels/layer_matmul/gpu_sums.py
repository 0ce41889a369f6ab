"""Multiplies few rows with one layer's weights on a GPU for which there is no kernel, such as a T4.

XLA copies a layer's weights out of the stack for the library that multiplies them. It reads them in
place for plain sums, several rows at once.
"""

import jax
import jax.numpy as jnp

# Rows whose sums XLA computes in one pass over the weights, and the most such passes. A copy moves
# the weights twice in addition to the product.
ROWS_OF_A_PASS, MOST_PASSES = 8, 2


def unsupported(x: jax.Array, kernels: jax.Array) -> str | None:
    """Why the sums cannot be used, or None if they can."""
    most = ROWS_OF_A_PASS * MOST_PASSES
    if kernels.shape[0] == 1:
        return "there is one layer, and XLA need not copy its weights"
    if x.dtype.itemsize != 2 or kernels.dtype not in (x.dtype, jnp.int8):
        return f"they take 16-bit numbers and int8 weights, not {x.dtype} times {kernels.dtype}"
    return f"there are {x.shape[0]} rows, and they take {most}" if x.shape[0] > most else None


def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`."""
    weights = jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False).astype(jnp.float32)
    rows = [jnp.sum(weights * row[None], axis=1) for row in x.astype(jnp.float32)]
    return jnp.stack(rows).astype(dtype)
