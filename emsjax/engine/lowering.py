"""Lowers a program whose arguments are shapes, as if they lay on a device that may not exist."""

from typing import Any

import jax
from jax.experimental.layout import Format, Layout


def lower(
    program: Any,
    weights: tuple[Any, ...],
    others: tuple[Any, ...],
    sharding: jax.sharding.Sharding | None,
    *,
    divided: bool,
) -> jax.stages.Lowered:
    """Lowers a program.

    Args:
      program: a jitted function of the weights and the others.
      weights: its first arguments.
      others: its other arguments.
      sharding: where all arguments lie; None for the default device.
      divided: whether devices share the arguments, which then keep their own places.
    """

    def put(x: Any, place: Format | jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    def put_by_row(x: Any) -> jax.ShapeDtypeStruct:
        # As `host.device` places weights on a TPU; other devices order axes so anyway.
        by_row, place = Layout(tuple(range(x.ndim))), x.sharding if divided else sharding
        return put(x, None if place is None else Format(by_row, place))

    weights = jax.tree.map(put_by_row, weights)
    if not divided:
        others = jax.tree.map(lambda x: put(x, sharding), others)
    return program.lower(*weights, *others)
