"""Multiplies rows with one layer's 4-bit weights, read in place from the stack of all layers."""

from dataclasses import replace
from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, Backends, always_supported, pick
from emsjax.pallas_kernels.checks import check_grouped_matmul
from emsjax.pallas_kernels.grouped_matmul import reference
from emsjax.pallas_kernels.quantised import Grouped


def _reference() -> Backend:
    return Backend(reference.grouped_matmul, always_supported)


def _cpu() -> Backend:
    from emsjax.pallas_kernels.grouped_matmul import cpu

    return Backend(cpu.grouped_matmul, cpu.unsupported)


def _tpu() -> Backend:
    from emsjax.pallas_kernels.grouped_matmul import tpu

    return Backend(tpu.grouped_matmul, tpu.unsupported)


def _gpu() -> Backend:
    from emsjax.pallas_kernels.grouped_matmul import gpu

    return Backend(gpu.grouped_matmul, gpu.unsupported)


def _gpu_triton() -> Backend:
    from emsjax.pallas_kernels.grouped_matmul import gpu_triton

    return Backend(gpu_triton.grouped_matmul, gpu_triton.unsupported)


BACKENDS: Backends = MappingProxyType(
    {
        "reference": _reference,
        "cpu": _cpu,
        "tpu": _tpu,
        "gpu": _gpu,
        "gpu-triton": _gpu_triton,
    }
)


def grouped_matmul(
    x: jax.Array,
    kernels: Grouped,
    *,
    layer: jax.Array,
    dtype: jax.typing.DTypeLike | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Computes `x @ kernels[layer].T`, summed in float32.

    A row's result does not depend on the other rows.

    Args:
      x: rows [T, in].
      kernels: weights of all layers [L, out, in] in 4 bits, with a scale for each group of inputs.
      layer: int32[], the layer to use.
      dtype: of the result; x's by default.
      backend: "reference" (XLA, on any platform), "cpu" (Numba), "tpu", or for few rows "gpu"
        (Hopper) or "gpu-triton" (since Ampere). None uses the platform's first that supports the
        arguments, else the reference.

    Returns:
      [T, out] in `dtype`.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer, dtype = jnp.asarray(layer), jnp.dtype(dtype or x.dtype)
    check_grouped_matmul(x, kernels, layer)
    if kernels.order is not None:
        # Rows are fewer than outputs, so their inputs are reordered rather than the weights.
        order = jax.lax.dynamic_index_in_dim(kernels.order, layer, keepdims=False)
        x = jnp.take(x, order, axis=1, mode="clip", unique_indices=True)
        kernels = replace(kernels, order=None)
    multiply = pick("grouped_matmul", BACKENDS, backend, x, kernels)
    return multiply(x, kernels, layer, dtype)
