"""A residual sum and its RMS norm as one Mosaic kernel for TPUs.

XLA makes operations of their own of the mean square, of its root and of the layer's factors, each
of which costs a TPU more than a microsecond.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from emsjax.pallas_kernels.few_rows import Given
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.norms import rms_scaled

# Rows of a register, which are processed at a time.
SUBLANES = 8
DTYPES = (jnp.float32, jnp.bfloat16)
# Of the rows and results, which are all in VMEM at once; a core has at least 16 MiB.
MOST_BYTES = 6 << 20


def unsupported(x: Given, scales: Given) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    del scales
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; the TPU kernel takes float32 and bfloat16"
    if x.shape[0] % SUBLANES:
        return f"there are {x.shape[0]} rows; the TPU kernel takes multiples of {SUBLANES}"
    # One term in float32, and three arrays of x's type.
    needed = x.shape[0] * x.shape[1] * (4 + 3 * x.dtype.itemsize)
    return f"the rows need {needed} bytes of VMEM" if needed > MOST_BYTES else None


def residual_norm(
    x: jax.Array,  # [T, D]
    parts: jax.Array,  # [P, at least T, D]
    scales: jax.Array,  # [L, D]
    layer: jax.Array,  # int32[]
    eps: float,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `api.residual_norm`."""
    here = pl.BlockSpec(memory_space=pltpu.VMEM)
    result = result_like(x.shape, x.dtype, x, parts)
    # As many layers as a register has rows, so that the block is whole tiles of the array.
    some_layers = pl.BlockSpec((SUBLANES, x.shape[1]), lambda _, layer: (layer[0] // SUBLANES, 0))
    call = pl.pallas_call(
        functools.partial(_kernel, eps=eps, offset=offset),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(1,),
            in_specs=[here, here, some_layers],
            out_specs=[here, here],
        ),
        out_shape=(result, result),
        cost_estimate=pl.CostEstimate(
            flops=(len(parts) + 5) * x.size, transcendentals=x.shape[0], bytes_accessed=0
        ),
        name="residual_norm",
    )
    total, normal = call(jnp.reshape(layer, 1), x, parts, scales)
    return total, normal


def _kernel(
    layer: Any,
    x: Any,
    parts: Any,
    scales: Any,
    total: Any,
    normal: Any,
    *,
    eps: float,
    offset: bool,
) -> None:
    """Takes eight rows at a time."""
    number = jax.lax.broadcasted_iota(jnp.int32, scales.shape, 0)
    own = number == layer[0] % SUBLANES
    wide_scales = scales[...].astype(jnp.float32)
    scale = jnp.where(own, wide_scales, 0.0).sum(axis=0, keepdims=True)

    def some(step: Any, _: None) -> None:
        rows = pl.ds(step * SUBLANES, SUBLANES)
        terms = [parts[part, rows].astype(jnp.float32) for part in range(len(parts))]
        more = functools.reduce(jnp.add, terms).astype(x.dtype).astype(jnp.float32)
        both = (x[rows].astype(jnp.float32) + more).astype(x.dtype)
        wide = both.astype(jnp.float32)
        square = jnp.mean(wide * wide, axis=1, keepdims=True)
        total[rows] = both
        normal[rows] = rms_scaled(wide, square, scale, eps, offset, x.dtype)

    jax.lax.fori_loop(0, x.shape[0] // SUBLANES, some, None)
