"""Products with weights, in XLA."""

import jax

from emsjax.pallas_kernels.backends import target_platform


def matmul(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """Returns `x @ kernel.T`, [T, out], for x [T, in] and kernel [out, in].

    Args:
      x: rows.
      kernel: weights.
      dtype: of the result; x's by default.
    """
    dtype = dtype or x.dtype
    if target_platform() == "cpu":
        return _kernel_first(x, kernel, dtype)
    return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def _kernel_first(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Computes `(kernel @ x.T).T`, which takes a CPU about half the time for few rows.

    The barriers keep XLA from swapping the operands back.
    """
    columns = jax.lax.optimization_barrier(x.T)
    product = jax.lax.dot_general(
        kernel, columns, (((1,), (0,)), ((), ())), preferred_element_type=dtype
    )
    return jax.lax.optimization_barrier(product).T
