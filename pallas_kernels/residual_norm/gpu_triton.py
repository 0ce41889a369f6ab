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
from emsjax.pallas_kernels.norms import rms_scaled
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
    eps: float,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `api.residual_norm`."""
    num_rows, width = x.shape
    whole, result = pl.BlockSpec(memory_space=pl.ANY), result_like(x.shape, x.dtype, x, parts)
    # Triton's arrays are powers of two long.
    lanes = pl.next_power_of_2(width)
    call = pl.pallas_call(
        functools.partial(_kernel, lanes=lanes, eps=eps, offset=offset),
        out_shape=(result, result),
        grid=(num_rows,),
        in_specs=[whole] * 4,
        out_specs=(whole, whole),
        compiler_params=triton.CompilerParams(
            num_warps=min(max(lanes // NUMBERS_OF_A_WARP, 1), MOST_WARPS)
        ),
        name="residual_norm",
    )
    return call(jnp.reshape(layer, 1), x, parts, scales)


def _kernel(
    layer: Any,
    x: Any,
    parts: Any,
    scales: Any,
    total: Any,
    normal: Any,
    *,
    lanes: int,
    eps: float,
    offset: bool,
) -> None:
    """One program: one row."""
    row, width, dtype = pl.program_id(0), x.shape[1], x.dtype
    lane = jnp.arange(lanes)
    there = lane < width

    def read(place: Any) -> jax.Array:
        return triton.load(place, mask=there, other=0).astype(jnp.float32)

    terms = [read(parts.at[part, row, lane]) for part in range(parts.shape[0])]
    added = functools.reduce(jnp.add, terms).astype(dtype)
    # As in XLA, where both the sum of the parts and the residual sum are rounded.
    both = (read(x.at[row, lane]) + added.astype(jnp.float32)).astype(dtype)
    wide = both.astype(jnp.float32)
    square = jnp.sum(wide * wide) / width
    scale = read(scales.at[layer[0], lane])
    triton.store(total.at[row, lane], both, mask=there)
    result = rms_scaled(wide, square, scale, eps, offset, dtype)
    triton.store(normal.at[row, lane], result, mask=there)
