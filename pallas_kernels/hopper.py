"""Tensor core products, copies and the device check that the kernels for Hopper GPUs share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from emsjax.pallas_kernels.backends import target_capability
from emsjax.pallas_kernels.quantised import bits_of

CAPABILITY = "9.0"


def no_hopper() -> str | None:
    """Returns why the GPU that programs are compiled for cannot run kernels for Hopper, or None.

    For an unknown GPU it returns None too, so that the kernels can be interpreted or lowered.
    """
    found = target_capability()
    if found is None or found == CAPABILITY:
        return None
    return f"the GPU has compute capability {found}; the kernel requires {CAPABILITY}"


def product(left: Any, right: Any) -> jax.Array:
    """Returns left [M, X] times right [X, Y] in float32.

    Args:
      left: in shared memory or registers.
      right: in shared memory.
    """

    def multiply(product: Any) -> jax.Array:
        plgpu.wgmma(product, left, right)
        return product[...]

    return pl.run_scoped(
        multiply, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32)
    )


def product_transposed(left: Any, right: Any) -> jax.Array:
    """Returns left [M, X] times right [Y, X] transposed, in float32; see `product`."""
    return product(left, right.transpose((1, 0)))


def widened(source: Any, dtype: jnp.dtype) -> jax.Array:
    """Returns int8 or int4 [M, X] in shared memory as a product's left operand, in registers."""
    # Each thread reads bytes that lie next to each other. They then move to where a product expects
    # the 16-bit numbers that they become.
    four_bits = source.dtype == jnp.int4
    layout = plgpu.Layout.WGMMA_UPCAST_4X if four_bits else plgpu.Layout.WGMMA_UPCAST_2X
    read = plgpu.load(source, (), layout=layout)
    return plgpu.layout_cast(read, plgpu.Layout.WGMMA).astype(dtype)


def of_rows(scales: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns a factor per row of a product, [1, M] in shared memory, spread over its columns."""
    read = plgpu.load(scales.at[0], (), layout=plgpu.Layout.WGMMA.reduce(1))
    return jax.lax.broadcast_in_dim(read, shape, (0,))


def write_transposed(product: jax.Array, target: Any) -> None:
    """Writes a product [M, N] in float32 to shared memory [N, M]."""
    by_column = plgpu.transpose_ref(target, (1, 0))
    by_column[...] = plgpu.layout_cast(product, plgpu.Layout.WGMMA_TRANSPOSED)


def transforms(width: int, dtype: jnp.dtype) -> tuple[Any, ...]:
    """Returns a layout of a tile [rows, width] in shared memory that the tensor cores can read."""
    swizzle = plgpu.find_swizzle(width * bits_of(dtype))
    tile = (8, swizzle * 8 // bits_of(dtype))
    return plgpu.TilingTransform(tile), plgpu.SwizzleTransform(swizzle)


def load(source: Any, target: Any, arrived: Any) -> None:
    """Copies from global to shared memory and waits until the copy has arrived."""
    plgpu.copy_gmem_to_smem(source, target, arrived)
    plgpu.barrier_wait(arrived)


def store(source: Any, target: Any) -> None:
    """Copies newly written shared memory to global memory and waits until the copy is complete."""
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0)
