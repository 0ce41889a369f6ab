"""Rows times the weights of one layer, read where they lie in the stack of all layers."""

from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, always_supported, pick
from emsjax.pallas_kernels.checks import check_layer_matmul
from emsjax.pallas_kernels.layer_matmul import gpu, reference

BACKENDS = MappingProxyType(
    {
        "reference": Backend(reference.layer_matmul, always_supported),
        "gpu": Backend(gpu.layer_matmul, gpu.unsupported),
    }
)


def layer_matmul(
    x: jax.Array, kernels: jax.Array, *, layer: jax.Array, backend: str | None = None
) -> jax.Array:
    """`x @ kernels[layer].T`, summed in float32.

    A row's result does not depend on the other rows.

    Args:
      x: [T, in].
      kernels: [L, out, in], of x's type.
      layer: int32[].
      backend: "reference" (XLA, anywhere) or "gpu" (Hopper, few rows); None picks the platform's
        where it can be used, else the reference.

    Returns:
      [T, out] in x's dtype.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer = jnp.asarray(layer)
    check_layer_matmul(x, kernels, layer)
    return pick("layer_matmul", BACKENDS, backend, x, kernels)(x, kernels, layer)
