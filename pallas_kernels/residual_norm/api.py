"""Adds what a sublayer computed to the residual stream, and normalises it for the next one."""

from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, Backends, always_supported, pick, suited
from emsjax.pallas_kernels.checks import check_residual_norm
from emsjax.pallas_kernels.few_rows import Given
from emsjax.pallas_kernels.norms import PartsNorm
from emsjax.pallas_kernels.residual_norm import reference


def _reference() -> Backend:
    return Backend(reference.residual_norm, always_supported)


def _gpu_triton() -> Backend:
    from emsjax.pallas_kernels.residual_norm import gpu_triton

    return Backend(gpu_triton.residual_norm, gpu_triton.unsupported)


def _tpu() -> Backend:
    from emsjax.pallas_kernels.residual_norm import tpu

    return Backend(tpu.residual_norm, tpu.unsupported)


BACKENDS: Backends = MappingProxyType(
    {"reference": _reference, "gpu-triton": _gpu_triton, "tpu": _tpu}
)


def residual_norm(
    x: jax.Array,
    parts: jax.Array,
    scales: jax.Array,
    *,
    layer: jax.Array,
    eps: float,
    offset: bool = False,
    of_parts: PartsNorm | None = None,
    backend: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes `total = x + parts.sum(0)[:T]` and its RMS norm, times `scales[layer]`.

    With `of_parts`, the norm of the parts' sum is added instead of the sum.

    A row's results do not depend on the other rows.

    Args:
      x: rows [T, D].
      parts: P terms to add to them, [P, at least T, D]. They are summed in float32, in order, and
        the sum is rounded to x's type. Rows past T are not read.
      scales: factors of all layers [L, D].
      layer: int32[], the layer whose factors to use.
      eps: added to the mean square.
      offset: whether the factor is 1 + scale instead of the scale.
      of_parts: the norm of the parts' sum, with the same `eps` and `offset`; None for none.
      backend: "reference" (XLA, on any platform), "gpu-triton" (since Ampere) or "tpu". None uses
        the platform's if it supports the arguments, else the reference.

    Returns:
      The sum and its norm, [T, D] in x's type each.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer = jnp.asarray(layer)
    check_residual_norm(x, parts, scales, layer, of_parts)
    run = pick("residual_norm", BACKENDS, backend, x, scales)
    return run(x, parts, scales, layer, of_parts, eps, offset)


def has_kernel(x: Given, scales: Given) -> bool:
    """Returns whether the platform has a kernel for these arguments, so that XLA is not used."""
    return suited(BACKENDS, x, scales) != "reference"
