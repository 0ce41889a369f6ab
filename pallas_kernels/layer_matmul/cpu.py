"""The CPU backend of products with one layer's weights, see `cpu_kernel`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.foreign import STORED, name_of, registered
from emsjax.pallas_kernels.products import matmul

_WIDEST = 32  # rows of a panel


def unsupported(x: jax.Array, kernels: jax.Array) -> str | None:
    """Returns why the kernel cannot be used for these arguments, or None if it can."""
    if kernels.dtype not in (x.dtype, jnp.int8) or str(x.dtype) not in STORED:
        return f"it takes float32, bfloat16 and int8, not {x.dtype} times {kernels.dtype}"
    return registered("layer_matmul", kernels.dtype, _load)


def _load() -> Callable:
    from emsjax.pallas_kernels.layer_matmul.cpu_kernel import register_kernel

    return register_kernel


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """See `api.layer_matmul`. Its derivatives, which training needs, are XLA's."""
    (num_rows, num_in), num_out = x.shape, kernels.shape[1]
    width = _panel_width(num_rows)
    padded = jnp.pad(x.astype(jnp.float32), ((0, -num_rows % width), (0, 0)))
    # Each panel holds its rows side by side, so that vectors hold one input of several rows.
    panels = padded.reshape(-1, width, num_in).swapaxes(1, 2)
    name = name_of("layer_matmul", kernels.dtype)
    if kernels.dtype == jnp.bfloat16:
        kernels = jax.lax.bitcast_convert_type(kernels, jnp.uint16)
    layer = jnp.clip(layer, 0, len(kernels) - 1)
    shape = jax.ShapeDtypeStruct((len(panels), num_out, width), jnp.float32)
    out = jax.ffi.ffi_call(name, shape, vmap_method="sequential")(panels, kernels, layer)
    # XLA turns panels into rows as it reads them, or not at all if rows become panels again.
    return out.swapaxes(1, 2).reshape(-1, num_out)[:num_rows].astype(dtype)


def _panel_width(num_rows: int) -> int:
    """Returns how many rows lie side by side: most, but without an empty half panel."""
    if num_rows <= _WIDEST // 4:
        return _WIDEST // 4
    return _WIDEST // 2 if -num_rows % _WIDEST >= _WIDEST // 2 else _WIDEST


@layer_matmul.defjvp
def _derivative(dtype: jnp.dtype, values: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernels, layer), (more_x, more_kernels, _) = values, tangents
    weights = jax.lax.dynamic_index_in_dim(kernels, layer, keepdims=False)
    change = matmul(more_x, weights.astype(x.dtype), dtype)
    if kernels.dtype != jnp.int8:  # whole numbers have no derivative
        more_weights = jax.lax.dynamic_index_in_dim(more_kernels, layer, keepdims=False)
        change += matmul(x, more_weights, dtype)
    return layer_matmul(x, kernels, layer, dtype), change
