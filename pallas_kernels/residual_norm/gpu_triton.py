"""A residual sum and its RMS norm on any GPU since Ampere, as one Triton kernel.

XLA adds, copies the layer's factors out of their stack, and normalises: three launches, of which
a GPU computes next to nothing. Here a program does all of it for a row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from emsjax.pallas_kernels.few_rows import Given
from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.norms import PartsNorm, rms_scaled
from emsjax.pallas_kernels.tensor_cores import DTYPES
from emsjax.pallas_kernels.triton_gpus import no_triton

# The widest rows, of which a program holds several copies in registers.
WIDEST = 16384
# Numbers of a row for each warp of a program, and the most warps.
NUMBERS_OF_A_WARP, MOST_WARPS = 512, 16


def unsupported(x: Given, scales: Given) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    del scales
    if reason := no_triton():
        return reason
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; the kernel takes bfloat16 and float16"
    return f"rows are {x.shape[1]} wide; it takes {WIDEST}" if x.shape[1] > WIDEST else None


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
    num_rows, width = x.shape
    whole, result = pl.BlockSpec(memory_space=pl.ANY), result_like(x.shape, x.dtype, x, parts)
    norms = [PartsNorm(scales, 0), *([] if of_parts is None else [of_parts])]
    # Triton's arrays are powers of two long.
    lanes = pl.next_power_of_2(width)
    call = pl.pallas_call(
        functools.partial(
            _kernel, lanes=lanes, lags=[norm.lag for norm in norms], eps=eps, offset=offset
        ),
        out_shape=(result, result),
        grid=(num_rows,),
        in_specs=[whole] * (3 + len(norms)),
        out_specs=(whole, whole),
        compiler_params=triton.CompilerParams(
            num_warps=min(max(lanes // NUMBERS_OF_A_WARP, 1), MOST_WARPS)
        ),
        name="residual_norm",
    )
    given = x, parts, *(norm.scales for norm in norms)
    total, normal = call(jnp.reshape(layer, 1), *given)
    return total, normal


def _kernel(
    layer: Any,
    x: Any,
    parts: Any,
    *refs: Any,
    lanes: int,
    lags: list[int],
    eps: float,
    offset: bool,
) -> None:
    """One program: one row; `refs` are the factors of each norm and both results."""
    *scales, total, normal = refs
    own, *of_parts = (PartsNorm(*each) for each in zip(scales, lags, strict=True))
    row, width, dtype = pl.program_id(0), x.shape[1], x.dtype
    lane = jnp.arange(lanes)
    there = lane < width

    def read(place: Any) -> jax.Array:
        return triton.load(place, mask=there, other=0).astype(jnp.float32)

    def normed(both: jax.Array, norm: PartsNorm) -> jax.Array:
        wide = both.astype(jnp.float32)
        square = jnp.sum(wide * wide) / width
        scale = read(norm.scales.at[norm.layer(layer[0]), lane])
        return rms_scaled(wide, square, scale, eps, offset, dtype)

    terms = [read(parts.at[part, row, lane]) for part in range(parts.shape[0])]
    added = functools.reduce(jnp.add, terms).astype(dtype)
    for norm in of_parts:
        added = normed(added, norm)
    # As in XLA, where both the sum of the parts and the residual sum are rounded.
    both = (read(x.at[row, lane]) + added.astype(jnp.float32)).astype(dtype)
    triton.store(total.at[row, lane], both, mask=there)
    triton.store(normal.at[row, lane], normed(both, own), mask=there)
