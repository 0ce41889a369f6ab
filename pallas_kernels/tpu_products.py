"""Products of blocks in TPU kernels, of floats and of 4-bit weights in groups.

Weights are widened where they are multiplied, and a group's scales multiply its sums, of which
there are fewer than weights. The matrix unit multiplies 128 inputs at a time. Of smaller groups
there are several among them: rows are then repeated, once for each, with zeros for the inputs of
the other groups, so that weights go into the unit once.
"""

from typing import Any

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.kv_rows import LANES


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns rows [T, in] times weights [out, in] in float32, in a kernel."""
    # Always set, because the compiler rejects a caller's other precisions for 16-bit numbers.
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def unsuitable_groups(num_in: int, size: int) -> str | None:
    """Why a kernel cannot have such groups of inputs, or None if it can."""
    if num_in % LANES or (size % LANES and LANES % size):
        return f"{num_in} inputs in groups of {size} are not multiples of {LANES}"
    return None


def repeated(x: jax.Array, size: int) -> jax.Array:
    """Repeats rows for each group among so many lanes, with zeros but for its own inputs.

    Args:
      x: rows [..., T, in].
      size: inputs of a group.

    Returns:
      [..., N, T, in].
    """
    x = jnp.expand_dims(x, -3)
    if size >= LANES:
        return x
    number = LANES // size
    group = jnp.arange(x.shape[-1], dtype=jnp.int32) // size % number
    mine = group[None] == jnp.arange(number, dtype=jnp.int32)[:, None]
    mine = mine.reshape(*[1] * (x.ndim - 3), number, 1, -1)
    return jnp.where(mine, x, jnp.zeros((), x.dtype))


def with_groups(total: jax.Array, x: Any, values: Any, scales: Any) -> jax.Array:
    """Adds the product of a block in a kernel: each group's sums times its scales.

    Args:
      total: float32[T, out].
      x: rows [N, T, in], see `repeated`.
      values: int4[out, in].
      scales: float32[G, out].
    """
    repeats, rows, depth = x.shape
    outs = total.shape[1]
    # Inputs that are multiplied at once: a group, or all groups among the lanes.
    together = max(depth // scales.shape[0], LANES)
    for step in range(depth // together):
        inputs = slice(step * together, (step + 1) * together)
        left = x[:, :, inputs].reshape(repeats * rows, together)
        found = product(left, values[:, inputs].astype(x.dtype)).reshape(repeats, rows, outs)
        for repeat in range(repeats):
            group = step * repeats + repeat
            total = total + found[repeat] * scales[group : group + 1, :]
    return total
