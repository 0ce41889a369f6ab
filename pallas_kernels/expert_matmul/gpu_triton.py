"""Products with experts on any GPU since Ampere, in one launch: programs look up their experts.

It is the kernel of `triton_products` with other weights for each tile. A loop over tiles would
launch several kernels for each.
"""

import math

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels import triton_products
from emsjax.pallas_kernels.expert_matmul.tiles import Tiles
from emsjax.pallas_kernels.few_rows import unsuitable
from emsjax.pallas_kernels.quantised import Grouped
from emsjax.pallas_kernels.triton_products import (
    MOST_ROWS,
    OUT,
    blocks_for,
    rows_of_program,
    sums_of,
    unsuitable_groups,
)


def unsupported(x: jax.Array, kernels: jax.Array | Grouped) -> str | None:
    """Why the kernel cannot be used, or None if it can."""
    if isinstance(kernels, Grouped):
        return unsuitable_groups(kernels.size) or unsupported(x, kernels.values)
    size = x.shape[1]
    if size != rows_of_program(size):
        return f"tiles have {size} rows; the kernel takes powers of two from 16 to {MOST_ROWS}"
    rows = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    layers, experts, *shape = kernels.shape
    stack = jax.ShapeDtypeStruct((layers * experts, *shape), kernels.dtype)
    return triton_products.unsupported(stack) or unsuitable(rows, stack, MOST_ROWS, OUT)


def expert_matmul(
    x: jax.Array, kernels: jax.Array | Grouped, layer: jax.Array, tiles: Tiles, dtype: jnp.dtype
) -> jax.Array:
    """See `api.expert_matmul`."""
    num_tiles, size, num_in = x.shape
    _, num_experts, num_out, _ = kernels.shape
    # There are enough tiles to keep the GPU busy without dividing the columns.
    blocks = blocks_for(num_out, num_in, size, parts=1)
    tile = jnp.arange(num_tiles, dtype=jnp.int32)
    numbers = jnp.where(tile < tiles.used[0], layer * num_experts + tiles.experts, -1)
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), kernels)
    stack, scales = (flat.values, flat.scales) if isinstance(flat, Grouped) else (flat, None)
    if isinstance(flat, Grouped):
        blocks = blocks._replace(depth=math.gcd(blocks.depth, flat.size))
    (sums,) = sums_of(
        x.reshape(-1, num_in),
        stack,
        numbers,
        blocks,
        scales=scales,
        each=True,
        name="expert_matmul",
    )
    return sums.reshape(num_tiles, size, num_out).astype(dtype)
