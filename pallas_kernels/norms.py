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


class PartsNorm(NamedTuple):
    """The RMS norm of what is added to the residual stream.

    Attributes:
      scales: factors of all layers, [L, D].
      lag: how many layers before the current one the addends were computed, 0 or 1. The factors are
        that layer's, or those of layer 0 if there is no such layer.
    """

    scales: jax.Array
    lag: int

    def layer(self, current: jax.Array) -> jax.Array:
        """Returns the layer whose factors to use, int32[]."""
        return jnp.maximum(current - self.lag, 0) if self.lag else current


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


def rms_norm(
    x: jax.Array, scales: jax.Array, layer: jax.Array, eps: float, offset: bool
) -> jax.Array:
    """Returns the RMS norm of rows [T, D] in XLA, times `scales[layer]`; see `rms_scaled`."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    scale = jnp.broadcast_to(jax.lax.dynamic_index_in_dim(scales, layer), x.shape)
    return rms_scaled(wide, square, scale, eps, offset, x.dtype)


def sum_of(parts: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the sum of P parts [P, at least T, D] to be added to x [T, D], in x's type."""
    return added(parts.astype(jnp.float32))[: len(x)].astype(x.dtype)
