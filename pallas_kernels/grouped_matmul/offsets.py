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
    offsets = jax.lax.dynamic_index_in_dim(kernels.offsets, layer, keepdims=False)
    return sums + of_offsets(x, offsets, kernels.size)


def of_offsets(x: jax.Array, offsets: jax.Array, size: int) -> jax.Array:
    """Returns the offsets' part of a product, float32[..., T, out].

    Args:
      x: rows [..., T, in].
      offsets: float32[..., G, out].
      size: inputs of a group.
    """
    inputs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, size).sum(axis=-1)
    return jnp.matmul(inputs, offsets, precision=jax.lax.Precision.HIGHEST)
