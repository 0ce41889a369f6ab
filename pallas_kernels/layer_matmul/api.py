"""Multiplies rows with one layer's weights, read in place from the stack of all layers."""

from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import products
from emsjax.pallas_kernels.backends import (
    Backend,
    Backends,
    always_supported,
    pick,
    target_platform,
)
from emsjax.pallas_kernels.checks import check_layer_matmul
from emsjax.pallas_kernels.grouped_matmul.api import grouped_matmul
from emsjax.pallas_kernels.layer_matmul import reference
from emsjax.pallas_kernels.quantised import Grouped, Quantised, Weights


def _reference() -> Backend:
    return Backend(reference.layer_matmul, always_supported)


def _cpu() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import cpu

    return Backend(cpu.layer_matmul, cpu.unsupported)


def _gpu() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import gpu

    return Backend(gpu.layer_matmul, gpu.unsupported)


def _gpu_triton() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import gpu_triton

    return Backend(gpu_triton.layer_matmul, gpu_triton.unsupported)


def _gpu_sums() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import gpu_sums

    return Backend(gpu_sums.layer_matmul, gpu_sums.unsupported)


def _summed() -> Backend:
    return Backend(_added_already, always_supported)


def _unsummed_on_gpu() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import gpu

    return Backend(gpu.layer_sums, gpu.unsupported)


def _unsummed_in_triton() -> Backend:
    from emsjax.pallas_kernels.layer_matmul import gpu_triton

    return Backend(gpu_triton.layer_sums, gpu_triton.unsupported)


BACKENDS: Backends = MappingProxyType(
    {
        "reference": _reference,
        "cpu": _cpu,
        "gpu": _gpu,
        "gpu-triton": _gpu_triton,
        "gpu-sums": _gpu_sums,
    }
)
# Backends that leave the addition of their partial sums to the caller.
SUMS: Backends = MappingProxyType(
    {"reference": _summed, "gpu": _unsummed_on_gpu, "gpu-triton": _unsummed_in_triton}
)


def layer_matmul(
    x: jax.Array,
    kernels: Weights,
    *,
    layer: jax.Array,
    dtype: jax.typing.DTypeLike | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Computes `x @ kernels[layer].T`, summed in float32.

    A row's result does not depend on the other rows.

    Args:
      x: rows [T, in].
      kernels: weights of all layers [L, out, in], of x's type or quantised; of float32 rows also
        bfloat16.
      layer: int32[], the layer to use.
      dtype: of the result; x's by default.
      backend: "reference" (XLA, on any platform), "cpu" (Numba), or for few rows "gpu" (Hopper),
        "gpu-triton" (since Ampere) or "gpu-sums" (XLA, older GPUs). None uses the platform's first
        that supports the arguments, else the reference.

    Returns:
      [T, out] in `dtype`.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer, dtype = jnp.asarray(layer), jnp.dtype(dtype or x.dtype)
    if isinstance(kernels, Grouped):
        return grouped_matmul(x, kernels, layer=layer, dtype=dtype, backend=backend)
    if isinstance(kernels, Quantised):
        # Scales multiply the sums rather than the weights, because there are fewer sums.
        sums = layer_matmul(x, kernels.values, layer=layer, dtype=jnp.float32, backend=backend)
        scale = jax.lax.dynamic_index_in_dim(kernels.scale, layer)
        return (sums * scale).astype(dtype)
    check_layer_matmul(x, kernels, layer)
    return pick("layer_matmul", BACKENDS, backend, x, kernels)(x, kernels, layer, dtype)


def layer_sums(x: jax.Array, kernels: Weights, *, layer: jax.Array) -> jax.Array:
    """Computes terms that add up to `x @ kernels[layer].T`, for callers that add to it anyway.

    Args:
      x: rows [T, in].
      kernels: as for `layer_matmul`.
      layer: int32[], the layer to use.

    Returns:
      P terms, float32[P, at least T, out]. Rows past T mean nothing.

    Raises:
      ValueError: an argument has a wrong shape or type.
    """
    layer = jnp.asarray(layer)
    if isinstance(kernels, Grouped | Quantised):
        return _added_already(x, kernels, layer)
    check_layer_matmul(x, kernels, layer)
    return pick("layer_sums", SUMS, None, x, kernels)(x, kernels, layer)


def _added_already(x: jax.Array, kernels: Weights, layer: jax.Array) -> jax.Array:
    return layer_matmul(x, kernels, layer=layer, dtype=jnp.float32)[None]


def matmul(x: jax.Array, kernel: Weights, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """Computes `x @ kernel.T` for weights that are not stacked.

    Args:
      x: rows [T, in].
      kernel: weights [out, in], which may be of another type than x, or quantised.
      dtype: of the result; x's by default.

    Returns:
      [T, out] in `dtype`.
    """
    if not isinstance(kernel, Quantised | Grouped) and not _multiplies(x.dtype, kernel.dtype):
        return products.matmul(x, kernel, dtype)
    stack = jax.tree.map(lambda array: array[None], kernel)
    return layer_matmul(x, stack, layer=jnp.zeros((), jnp.int32), dtype=dtype)


def _multiplies(rows: jnp.dtype, weights: jnp.dtype) -> bool:
    """Returns whether kernels multiply numbers of these types, rather than XLA.

    XLA reads weights of fewer bits as they are, but on a CPU it widens all of them first.
    """
    widened = target_platform() == "cpu" and (rows, weights) == (jnp.float32, jnp.bfloat16)
    return rows == weights or widened
