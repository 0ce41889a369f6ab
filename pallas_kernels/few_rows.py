"""What the GPU kernels for few rows have in common."""

import functools

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.tensor_cores import DTYPES

# An array, or only its shape and type.
Given = jax.Array | jax.ShapeDtypeStruct


def unsuitable(x: Given, kernels: Given, most_rows: int, multiple: int) -> str | None:
    """Returns why a kernel cannot take these arguments, or None if it can.

    Args:
      x: rows [T, in].
      kernels: weights of all layers [L, out, in].
      most_rows: the most rows that it takes.
      multiple: `out` and `in` must be multiples of this.
    """
    num_layers, *shape = kernels.shape
    problems = (
        (num_layers == 1, "there is one layer, and XLA need not copy its weights"),
        (
            x.dtype not in DTYPES or kernels.dtype not in (x.dtype, jnp.int8, jnp.int4),
            f"the kernel takes bfloat16, float16, int8 and int4 weights, not {x.dtype} times "
            f"{kernels.dtype}",
        ),
        (x.shape[0] > most_rows, f"there are {x.shape[0]} rows, and the kernel takes {most_rows}"),
        (
            any(size % multiple for size in shape),
            f"weights are {shape}, and the kernel takes multiples of {multiple}",
        ),
    )
    return next((reason for problem, reason in problems if problem), None)


def added(parts: jax.Array) -> jax.Array:
    """Adds the sums over each part of the columns, [parts, ...].

    One after another, because the way XLA divides a sum of many terms depends on T.
    """
    return functools.reduce(jnp.add, [parts[n] for n in range(len(parts))])
