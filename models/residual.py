"""The residual stream between sublayers, whose sums wait for the next norm where that is cheaper.

One kernel then adds and normalises. What still waits is the terms of `Linear.terms`.
"""

import jax

from emsjax.models.norms import RMSNorm
from emsjax.pallas_kernels.norms import PartsNorm, rms_norm, sum_of
from emsjax.pallas_kernels.residual_norm.api import has_kernel, residual_norm


def sums_wait(norm: object, x: jax.Array) -> bool:
    """Whether a kernel adds and normalises at once, for the norms of a stack and x [T, D]."""
    return isinstance(norm, RMSNorm) and has_kernel(x, norm.scale[...])


def total(
    x: jax.Array, terms: jax.Array | None, of_terms: RMSNorm | None, layer: jax.Array
) -> jax.Array:
    """Returns x [T, D] and what is still to be added to it, if anything is, in x's type.

    Args:
      x: [T, D].
      terms: [P, at least T, D]; None for nothing.
      of_terms: the norm of the terms' sum, with the factors of a stack of layers; None for none.
      layer: int32[], the layer that the terms are of.
    """
    if terms is None:
        return x
    more = sum_of(terms, x)
    if of_terms is None:
        return x + more
    return x + rms_norm(more, of_terms.scale[...], layer, of_terms.eps, of_terms.offset)


def total_and_norm(
    x: jax.Array,
    terms: jax.Array | None,
    norm: RMSNorm | None,
    layer: jax.Array | None,
    of_terms: RMSNorm | None,
    lag: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Returns x with the terms added, and the norm of that, [T, D] each.

    Args:
      x: [T, D].
      terms: [P, at least T, D].
      norm: with the factors of a stack of layers.
      layer: int32[], whose factors to use.
      of_terms: the norm of the terms' sum, likewise; None for none.
      lag: how many layers before `layer` the terms were computed.
    """
    assert terms is not None, "something is to be added"
    assert norm is not None, "only layers with norms wait"
    assert layer is not None, "only layers in a stack wait"
    of_parts = None if of_terms is None else PartsNorm(of_terms.scale[...], lag)
    scale, eps, offset = norm.scale[...], norm.eps, norm.offset
    return residual_norm(x, terms, scale, layer=layer, eps=eps, offset=offset, of_parts=of_parts)
