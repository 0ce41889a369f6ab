"""Multiplies tiles of rows with their experts' weights, read in place from the stack."""

from dataclasses import replace
from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, Backends, always_supported, pick
from emsjax.pallas_kernels.checks import check_expert_matmul
from emsjax.pallas_kernels.expert_matmul import reference
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles
from emsjax.pallas_kernels.grouped_matmul.offsets import of_offsets
from emsjax.pallas_kernels.quantised import Grouped, Quantised, Weights


def _reference() -> Backend:
    return Backend(reference.expert_matmul, always_supported)


def _tpu() -> Backend:
    from emsjax.pallas_kernels.expert_matmul import tpu

    return Backend(tpu.expert_matmul, tpu.unsupported)


def _gpu_triton() -> Backend:
    from emsjax.pallas_kernels.expert_matmul import gpu_triton

    return Backend(gpu_triton.expert_matmul, gpu_triton.unsupported)


BACKENDS: Backends = MappingProxyType(
    {"reference": _reference, "tpu": _tpu, "gpu-triton": _gpu_triton}
)


def expert_matmul(
    x: jax.Array,
    kernels: Weights,
    *,
    layer: jax.Array,
    tiles: Tiles,
    dtype: jax.typing.DTypeLike | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Computes `x[n] @ kernels[layer, tiles.experts[n]].T` for each tile n, summed in float32.

    A row's result does not depend on the other rows.

    Args:
      x: rows in tiles [X, Y, in], see `tiles.to_tiles`.
      kernels: weights of all layers [L, E, out, in], of x's type or quantised; in 4 bits with
        inputs in their order.
      layer: int32[], the layer to use.
      tiles: the expert of each tile, and the number of tiles with rows, see `tiles.tiles_of`.
      dtype: of the result; x's by default.
      backend: "reference" (a `layer_matmul` for each tile, on any platform), "tpu" or "gpu-triton"
        (since Ampere). None uses the platform's own if it supports the arguments, else the
        reference.

    Returns:
      [X, Y, out] in `dtype`; anything in unused tiles.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer, dtype = jnp.asarray(layer), jnp.dtype(dtype or x.dtype)
    if isinstance(kernels, Quantised):
        # Scales multiply the sums rather than the weights, because there are fewer sums.
        sums = expert_matmul(
            x, kernels.values, layer=layer, tiles=tiles, dtype=jnp.float32, backend=backend
        )
        return (sums * kernels.scale[layer, tiles.experts][:, None]).astype(dtype)
    check_expert_matmul(x, kernels, layer, tiles.experts)
    if isinstance(kernels, Grouped) and kernels.offsets is not None:
        without = replace(kernels, offsets=None)
        sums = expert_matmul(
            x, without, layer=layer, tiles=tiles, dtype=jnp.float32, backend=backend
        )
        offsets = kernels.offsets[layer, tiles.experts]
        return (sums + of_offsets(x, offsets, kernels.size)).astype(dtype)
    multiply = pick("expert_matmul", BACKENDS, backend, x, kernels)
    return multiply(x, kernels, layer, tiles, dtype)
