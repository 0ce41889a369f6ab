"""What the kernels for Hopper GPUs share: tensor core products, copies, where they can run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

DTYPES = (jnp.bfloat16, jnp.float16)
CAPABILITY = "9.0"
# Rows of a tensor core product.
TENSOR_CORE_ROWS = 64


def no_hopper() -> str | None:
    """Why kernels for Hopper cannot be used on the GPU that is there; None where none is."""
    if jax.default_backend() != "gpu":
        return None
    found = str(jax.devices()[0].compute_capability)
    if found == CAPABILITY:
        return None
    return f"the GPU has compute capability {found}, the kernel is for {CAPABILITY}"


def product(left: Any, right: Any) -> jax.Array:
    """left [M, X], in shared memory or registers, times right [X, Y] in shared memory, float32."""

    def multiply(product: Any) -> jax.Array:
        plgpu.wgmma(product, left, right)
        return product[...]

    return pl.run_scoped(
        multiply, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32)
    )


def product_transposed(left: Any, right: Any) -> jax.Array:
    """left [M, X] times right [Y, X] transposed, both in shared memory, float32."""
    return product(left, right.transpose((1, 0)))


def transforms(width: int, dtype: jnp.dtype) -> tuple[Any, ...]:
    """How a tile [rows, width] lies in shared memory, so that the tensor cores can read it."""
    swizzle = plgpu.find_swizzle(width * dtype.itemsize * 8)
    tile = (8, swizzle // dtype.itemsize)
    return plgpu.TilingTransform(tile), plgpu.SwizzleTransform(swizzle)


def load(source: Any, target: Any, arrived: Any) -> None:
    """Copies from global into shared memory and waits."""
    plgpu.copy_gmem_to_smem(source, target, arrived)
    plgpu.barrier_wait(arrived)


def store(source: Any, target: Any) -> None:
    """Copies what was just written from shared into global memory and waits."""
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0)
