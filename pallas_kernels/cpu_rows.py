"""Calls of the products of `cpu_strips`, with rows as they take them."""

import jax
import jax.numpy as jnp

LANES = 16  # numbers that are multiplied at once


def multiply(name: str, x: jax.Array, kernels: jax.Array, *others: jax.Array) -> jax.Array:
    """Calls a product that Numba compiled.

    Args:
      name: of the foreign function.
      x: rows [T, in].
      kernels: weights of all layers [L, out, in], as the function takes them.
      *others: its further operands: the layer int32[], and so on.

    Returns:
      float32[T, out].
    """
    num_rows, num_in = x.shape
    rows = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -num_in % LANES)))
    shape = jax.ShapeDtypeStruct((num_rows, kernels.shape[1]), jnp.float32)
    return jax.ffi.ffi_call(name, shape, vmap_method="sequential")(rows, kernels, *others)
