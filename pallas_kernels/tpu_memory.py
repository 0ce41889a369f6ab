"""Keeps a cache in HBM while a TPU kernel writes a few tokens into it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu


def last_in_hbm(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel's call that leaves its last operand in HBM, and the result in its place.

    XLA would move a cache that fits to VMEM in each step, and back, though a step writes only a few
    of its tokens.
    """

    # Outside of a compiled program jax refuses such a constraint.
    @functools.partial(jax.jit, inline=True)
    def constrained(*operands: Any) -> Any:
        *others, cache = operands
        results = call(*others, pltpu.with_memory_space_constraint(cache, pltpu.HBM))
        # XLA refuses to return from a program what is constrained; behind a barrier it returns it.
        return jax.tree.map(
            lambda x: jax.lax.optimization_barrier(x) if x.shape == cache.shape else x, results
        )

    return constrained
