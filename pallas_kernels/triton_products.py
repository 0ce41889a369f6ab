"""Products of rows with weights from a stack on any GPU since Ampere, as a Triton kernel.

XLA copies weights out of a stack before it multiplies them, so that they cross the memory three
times. Here each program streams its part of the weights, straight from the stack. How a sum is
divided depends only on the weights' shape. Weights in int8 or 4 bits are converted after they have
been read, so that memory holds bytes. A group's scales multiply its sums.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from emsjax.pallas_kernels.manual_axes import result_like
from emsjax.pallas_kernels.triton_gpus import no_triton
from emsjax.pallas_kernels.tuned import tuned

# Outputs of a program, and the number of columns that it multiplies at a time, or half as many.
OUT, DEPTH = 64, 128
# Most rows of a program, and most programs that read the same weights for different rows. The
# weights then come from memory once for all of them.
MOST_ROWS, MOST_SHARES = 64, 4
# A matrix unit multiplies this many rows, and so many inputs at least.
ROW_MULTIPLE = SMALLEST_GROUP = 16
# Enough programs to keep the memory of any GPU busy.
ENOUGH_PROGRAMS = 192
# jax counts the elements of arrays of up to 2**32 bytes in 32 bits, which for Triton have a sign.
# That suits numbers of two bytes or more, of which there are at most half as many.
MISCOUNTED = range(2**31 + 1, 2**32 + 1)
# Shared memory that every GPU since Ampere has for a program, and the most blocks in flight.
SHARED_BYTES, STAGES = 96 << 10, 4


class Blocks(NamedTuple):
    """The division of the work among programs.

    Attributes:
      depth: columns of the weights that a program multiplies at a time.
      parts: programs among which the columns are divided.
      rows: rows of x of a program, a power of two.
      stages: blocks of weights and rows in flight or in use.
    """

    depth: int
    parts: int
    rows: int
    stages: int


class Sizes(NamedTuple):
    """What the division of sums depends on: weights [out, in]."""

    num_out: int
    num_in: int


class Split(NamedTuple):
    """The block sizes that may be tuned, see `Blocks`."""

    parts: int


def blocks_for(num_out: int, num_in: int, num_rows: int, parts: int | None = None) -> Blocks:
    """Returns the sizes for T rows and weights [out, in]; only `rows` and `stages` depend on T.

    Args:
      num_out: outputs.
      num_in: inputs.
      num_rows: T.
      parts: see `Blocks`; None chooses as many as keep a GPU busy, or as were tuned.
    """
    if parts is None:
        parts = _parts(num_out, num_in)
    depth = DEPTH if num_in // parts % DEPTH == 0 else DEPTH // 2
    rows = rows_of_program(num_rows)
    return Blocks(depth, parts, rows, min(SHARED_BYTES // ((OUT + rows) * depth * 2), STAGES))


def rows_of_program(num_rows: int) -> int:
    """Returns how many of T rows a program multiplies, a power of two."""
    return min(pl.next_power_of_2(max(num_rows, ROW_MULTIPLE)), MOST_ROWS)


def _parts(num_out: int, num_in: int) -> int:
    parts = 1
    while num_out // OUT * parts < ENOUGH_PROGRAMS and num_in % (2 * parts * DEPTH) == 0:
        parts *= 2
    return tuned("layer_matmul/gpu-triton", Sizes(num_out, num_in), Split(parts)).parts


def unsupported(kernels: Any) -> str | None:
    """Why the kernel cannot read this stack, or None if it can."""
    if reason := no_triton():
        return reason
    nbytes = kernels.size // (2 if kernels.dtype == jnp.int4 else 1)
    if kernels.dtype.itemsize == 1 and nbytes in MISCOUNTED:
        return f"the stack has {nbytes} bytes, which jax would count in 32 bits with a sign"
    return None


def unsuitable_groups(size: int) -> str | None:
    """Why the kernel cannot have groups of so many inputs, or None if it can."""
    if size % SMALLEST_GROUP or (size & (size - 1) and size % 128):
        return f"the kernel takes groups of 16, 32, 64 or multiples of 128, not {size}"
    return None


def sums_of(
    x: jax.Array,
    kernels: jax.Array,
    numbers: jax.Array,
    blocks: Blocks,
    *,
    scales: jax.Array | None = None,
    each: bool = False,
    name: str = "layer_matmul",
) -> jax.Array:
    """Multiplies rows with weights from a stack.

    Args:
      x: rows [T, in].
      kernels: a stack of weights [L, out, in].
      numbers: which weights to use, int32[1].
      blocks: the sizes.
      scales: of groups, float32[L, G, out]; None for weights without. `blocks.depth` columns are
        all in one group.
      each: whether `numbers` is int32[T / blocks.rows], which weights to use for each so many rows;
        -1 for none, whose sums are 0.
      name: of the kernel in programs.

    Returns:
      The sums over each part of the columns, float32[parts, T, out], T rounded up to a multiple of
      `blocks.rows`.
    """
    shares, num_out = pl.cdiv(x.shape[0], blocks.rows), kernels.shape[1]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    if kernels.dtype == jnp.int4:
        # With the columns of a step on an axis of their own, they are read as bytes.
        kernels = kernels.reshape(*kernels.shape[:2], -1, blocks.depth)
    given = () if scales is None else (scales,)
    call = pl.pallas_call(
        functools.partial(_kernel, blocks=blocks, each=each),
        out_shape=result_like(
            (blocks.parts, shares * blocks.rows, num_out), jnp.float32, x, kernels
        ),
        # Programs that read the same weights for different rows are next to each other.
        grid=(shares, num_out // OUT, blocks.parts),
        in_specs=[whole] * (3 + len(given)),
        out_specs=pl.BlockSpec(
            (None, blocks.rows, OUT), lambda share, tile, part: (part, share, tile)
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=blocks.stages),
        name=name,
    )
    return call(numbers, x, kernels, *given)


def _kernel(
    numbers: Any, x: Any, kernels: Any, *scales_and_out: Any, blocks: Blocks, each: bool
) -> None:
    """One program: its outputs for its rows, summed over one part of the columns."""
    *scales, out = scales_and_out
    share, tile, part = (pl.program_id(axis) for axis in range(3))
    steps = x.shape[1] // blocks.parts // blocks.depth
    number = numbers[share if each else 0]
    end = jnp.minimum(number + 1, 1) * steps if each else steps  # 0 if there are no weights

    def add(step: jax.Array, sums: jax.Array) -> jax.Array:
        columns = pl.ds((part * steps + step) * blocks.depth, blocks.depth)
        outs = pl.ds(tile * OUT, OUT)
        by_step = kernels.dtype == jnp.int4
        place = (part * steps + step, slice(None)) if by_step else (columns,)
        weights = kernels[(number, outs, *place)]
        rows = _read_rows(x, share * blocks.rows, blocks.rows, columns)
        product = product_transposed(rows, weights.astype(rows.dtype))
        for held in scales:
            steps_of_group = x.shape[1] // blocks.depth // held.shape[1]
            product *= held[number, (part * steps + step) // steps_of_group, outs][None]
        return sums + product

    out[...] = jax.lax.fori_loop(0, end, add, jnp.zeros((blocks.rows, OUT), jnp.float32))


def _read_rows(x: Any, first: jax.Array, count: int, columns: Any) -> jax.Array:
    """Returns some rows of x, and zeros after its last one."""
    place = x.at[pl.ds(first, count), columns]
    if x.shape[0] % count == 0:
        return place[...]
    there = first + jnp.arange(count) < x.shape[0]
    mask = jnp.broadcast_to(there[:, None], (count, columns.size))
    return triton.load(place, mask=mask, other=0)


def product_transposed(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns left [M, X] times right [Y, X] transposed, in float32."""
    return triton.dot(left, right.T)
