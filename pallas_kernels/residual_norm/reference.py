"""A residual sum and its RMS norm in XLA."""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.norms import residual_sum, rms_scaled


def residual_norm(
    x: jax.Array,  # [T, D]
    parts: jax.Array,  # [P, at least T, D]
    scales: jax.Array,  # [L, D]
    layer: jax.Array,  # int32[]
    eps: float,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `api.residual_norm`."""
    total = residual_sum(x, parts)
    wide = total.astype(jnp.float32)
    square = jnp.mean(wide**2, axis=-1, keepdims=True)
    scale = jnp.broadcast_to(jax.lax.dynamic_index_in_dim(scales, layer), x.shape)
    return total, rms_scaled(wide, square, scale, eps, offset, x.dtype)
