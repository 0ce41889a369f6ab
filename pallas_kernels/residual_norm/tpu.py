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
from emsjax.pallas_kernels.norms import PartsNorm, rms_scaled
from emsjax.pallas_kernels.tpu_registers import SUBLANES

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
    of_parts: PartsNorm | None,
    eps: float,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `api.residual_norm`."""
    here = pl.BlockSpec(memory_space=pltpu.VMEM)
    result = result_like(x.shape, x.dtype, x, parts)
    norms = [PartsNorm(scales, 0), *([] if of_parts is None else [of_parts])]
    call = pl.pallas_call(
        functools.partial(_kernel, lags=[norm.lag for norm in norms], eps=eps, offset=offset),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(1,),
            in_specs=[here, here, *map(_some_layers, norms)],
            out_specs=[here, here],
        ),
        out_shape=(result, result),
        cost_estimate=pl.CostEstimate(
            flops=(len(parts) + 5 * len(norms)) * x.size,
            transcendentals=len(norms) * x.shape[0],
            bytes_accessed=0,
        ),
        name="residual_norm",
    )
    given = x, parts, *(norm.scales for norm in norms)
    total, normal = call(jnp.reshape(layer, 1), *given)
    return total, normal


def _some_layers(norm: PartsNorm) -> pl.BlockSpec:
    """Returns the block with a norm's factors.

    It has as many layers as a register has rows, so that it is whole tiles of the array.
    """
    shape = SUBLANES, norm.scales.shape[1]
    return pl.BlockSpec(shape, lambda _, layer: (norm.layer(layer[0]) // SUBLANES, 0))


def _kernel(
    layer: Any,
    x: Any,
    parts: Any,
    *refs: Any,
    lags: list[int],
    eps: float,
    offset: bool,
) -> None:
    """Takes eight rows at a time; `refs` are the factors of each norm and both results."""
    *blocks, total, normal = refs
    norms = [PartsNorm(*each) for each in zip(blocks, lags, strict=True)]
    scale, *scale_of_parts = (_own(norm.scales, norm.layer(layer[0])) for norm in norms)

    def normed(both: jax.Array, scale: jax.Array) -> jax.Array:
        wide = both.astype(jnp.float32)
        square = jnp.mean(wide * wide, axis=1, keepdims=True)
        return rms_scaled(wide, square, scale, eps, offset, x.dtype)

    def some(step: Any, _: None) -> None:
        rows = pl.ds(step * SUBLANES, SUBLANES)
        terms = [parts[part, rows].astype(jnp.float32) for part in range(len(parts))]
        more = functools.reduce(jnp.add, terms).astype(x.dtype)
        for each in scale_of_parts:
            more = normed(more, each)
        both = (x[rows].astype(jnp.float32) + more.astype(jnp.float32)).astype(x.dtype)
        total[rows] = both
        normal[rows] = normed(both, scale)

    jax.lax.fori_loop(0, x.shape[0] // SUBLANES, some, None)


def _own(block: Any, layer: Any) -> jax.Array:
    """Returns a layer's factors, float32[1, D], from the block that has them."""
    own = jax.lax.broadcasted_iota(jnp.int32, block.shape, 0) == layer % SUBLANES
    return jnp.where(own, block[...].astype(jnp.float32), 0.0).sum(axis=0, keepdims=True)
