"""What all implementations of residual sums and of the RMS norm have in common."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.few_rows import added


class HeadNorms(NamedTuple):
    """RMS norms of queries and of keys, of each head or of all heads together.

    Attributes:
      queries: factors of all layers, [L, H], or [L, N * H] for all heads together.
      keys: the same of keys, [L, H] or [L, K * H].
      layer: int32[], the layer whose factors to use.
      eps: see `rms_scaled`.
      offset: see there.
    """

    queries: jax.Array
    keys: jax.Array
    layer: jax.Array
    eps: float
    offset: bool


def rms_scaled(
    wide: jax.Array,
    square: jax.Array,
    scale: jax.Array,
    eps: float,
    offset: bool,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Returns the RMS norm of numbers, from the mean of their squares.

    Args:
      wide: float32[..., D].
      square: float32[..., 1] or float32[].
      scale: factors [..., D].
      eps: added to the mean.
      offset: whether a factor is 1 + scale.
      dtype: of the result.
    """
    normal = wide * jax.lax.rsqrt(square + eps)
    if offset:  # the families that do this multiply before they round
        return (normal * (1 + scale.astype(jnp.float32))).astype(dtype)
    return normal.astype(dtype) * scale.astype(dtype)


def residual_sum(x: jax.Array, parts: jax.Array) -> jax.Array:
    """Returns x [T, D] plus the sum of P parts [P, at least T, D], in x's type."""
    return x + added(parts.astype(jnp.float32))[: len(x)].astype(x.dtype)
