"""A residual sum and its RMS norm in XLA."""

import jax

from emsjax.pallas_kernels.norms import PartsNorm, rms_norm, sum_of


def residual_norm(
    x: jax.Array,  # [T, D]
    parts: jax.Array,  # [P, at least T, D]
    scales: jax.Array,  # [L, D]
    layer: jax.Array,  # int32[]
    of_parts: PartsNorm | None,
    eps: float,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `api.residual_norm`."""
    more = sum_of(parts, x)
    if of_parts is not None:
        more = rms_norm(more, of_parts.scales, of_parts.layer(layer), eps, offset)
    total = x + more
    return total, rms_norm(total, scales, layer, eps, offset)
