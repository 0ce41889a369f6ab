"""The CPU backend of products with one layer's weights, see `cpu_kernel`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import cpu_rows
from emsjax.pallas_kernels.foreign import name_of, registered
from emsjax.pallas_kernels.products import matmul


def unsupported(x: jax.Array, kernels: jax.Array) -> str | None:
    """Returns why the kernel cannot be used for these arguments, or None if it can."""
    floats = (jnp.float32, jnp.bfloat16)
    if x.dtype not in floats or kernels.dtype not in (*floats, jnp.int8):
        return f"it takes float32, bfloat16 and int8, not {x.dtype} times {kernels.dtype}"
    return registered("layer_matmul", kernels.dtype, _load)


def _load() -> Callable:
    from emsjax.pallas_kernels.layer_matmul.cpu_kernel import register_kernel

    return register_kernel


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`. Its derivatives, which training needs, are XLA's."""
    name = name_of("layer_matmul", kernels.dtype)
    layer = jnp.clip(layer, 0, len(kernels) - 1)
    return cpu_rows.multiply(name, x, kernels, layer).astype(dtype)


@layer_matmul.defjvp
def _derivative(dtype: jnp.dtype, values: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernels, layer), (more_x, more_kernels, _) = values, tangents
    weights = jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False)
    change = matmul(more_x, weights.astype(x.dtype), dtype)
    if kernels.dtype != jnp.int8:  # whole numbers have no derivative
        more_weights = jax.lax.dynamic_index_in_dim(more_kernels, layer, keepdims=False)
        change += matmul(x, more_weights, dtype)
    return layer_matmul(x, kernels, layer, dtype), change
