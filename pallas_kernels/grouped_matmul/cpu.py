"""The CPU backend of products with 4-bit weights, see `cpu_kernel`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import cpu_rows
from emsjax.pallas_kernels.foreign import name_of, registered
from emsjax.pallas_kernels.grouped_matmul.as_floats import multiply
from emsjax.pallas_kernels.quantised import Grouped


def unsupported(x: jax.Array, kernels: Grouped) -> str | None:
    """Returns why the kernel cannot be used for these arguments, or None if it can."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it takes float32 and bfloat16, not {x.dtype}"
    if kernels.size % 2:
        return f"it takes groups of an even size, not {kernels.size}"
    return registered("grouped_matmul", kernels.values.dtype, _load)


def _load() -> Callable:
    from emsjax.pallas_kernels.grouped_matmul.cpu_kernel import register_kernel

    return register_kernel


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def grouped_matmul(x: jax.Array, kernels: Grouped, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.grouped_matmul`. Its derivatives are XLA's."""
    none = jnp.zeros((0, 0, 0), jnp.float32)
    offsets = none if kernels.offsets is None else kernels.offsets
    layer = jnp.clip(layer, 0, len(kernels.values) - 1)
    name = name_of("grouped_matmul", kernels.values.dtype)
    sums = cpu_rows.multiply(name, x, kernels.values, layer, kernels.scales, offsets)
    return sums.astype(dtype)


@grouped_matmul.defjvp
def _derivative(dtype: jnp.dtype, values: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    def product(x: jax.Array, kernels: Grouped, layer: jax.Array) -> jax.Array:
        return multiply(x, kernels, layer, dtype)

    return grouped_matmul(*values, dtype), jax.jvp(product, values, tangents)[1]
