"""What the offsets of groups add to a product, which kernels leave to XLA."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.quantised import Grouped


def with_offsets(sums: jax.Array, x: jax.Array, kernels: Grouped, layer: jax.Array) -> jax.Array:
    """Adds the offsets' part: all inputs of a group have the same, so it multiplies their sum.

    Args:
      sums: the product without offsets, float32[T, out].
      x: rows [T, in].
      kernels: weights of all layers [L, out, in].
      layer: int32[], the layer to use.
    """
    if kernels.offsets is None:
        return sums
    inputs = x.astype(jnp.float32).reshape(len(x), -1, kernels.size).sum(axis=2)
    offsets = jax.lax.dynamic_index_in_dim(kernels.offsets, layer, keepdims=False)
    return sums + jnp.matmul(inputs, offsets, precision=jax.lax.Precision.HIGHEST)
