"""The residual stream between sublayers, whose sums wait for the next norm where that is cheaper.

One kernel then adds and normalises. What still waits is the terms of `Linear.terms`.
"""

import jax

from emsjax.models.norms import RMSNorm
from emsjax.pallas_kernels.norms import residual_sum
from emsjax.pallas_kernels.residual_norm.api import has_kernel, residual_norm


def sums_wait(norm: object, x: jax.Array) -> bool:
    """Whether a kernel adds and normalises at once, for the norms of a stack and x [T, D]."""
    return isinstance(norm, RMSNorm) and has_kernel(x, norm.scale[...])


def total(x: jax.Array, terms: jax.Array | None) -> jax.Array:
    """Returns x [T, D] and what is still to be added to it, if anything is, in x's type."""
    return x if terms is None else residual_sum(x, terms)


def total_and_norm(
    x: jax.Array, terms: jax.Array | None, norm: RMSNorm | None, layer: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns `total(x, terms)` and its norm, [T, D] each.

    Args:
      x: [T, D].
      terms: [P, at least T, D].
      norm: with the factors of a stack of layers.
      layer: int32[], whose factors to use.
    """
    assert terms is not None, "something is to be added"
    assert norm is not None, "only layers with norms wait"
    assert layer is not None, "only layers in a stack wait"
    scales = norm.scale[...]
    return residual_norm(x, terms, scales, layer=layer, eps=norm.eps, offset=norm.offset)
