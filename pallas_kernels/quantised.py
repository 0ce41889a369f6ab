"""Weights in int8 with one float32 scale per output channel."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """Weights `values * scale[..., None]`, kept as their two factors.

    Attributes:
      values: int8[..., out, in].
      scale: float32[..., out].
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights, [..., out, in]."""
        return self.values.shape


Weights = jax.Array | Quantised


def weights_of(values: Any, scale: Any | None) -> Weights:
    """Returns the weights that two parameters hold; `scale` is None if they are not quantised."""
    return values[...] if scale is None else Quantised(values[...], scale[...])


def floats(weights: Weights) -> jax.Array:
    """Returns the weights as they are if they are not quantised, otherwise in float32."""
    if isinstance(weights, Quantised):
        return weights.values.astype(jnp.float32) * weights.scale[..., None]
    return weights


def take_rows(weights: Weights, rows: jax.Array) -> jax.Array:
    """Looks up rows of an embedding.

    Args:
      weights: [V, E].
      rows: int32[...], each from 0 to V - 1.

    Returns:
      [..., E] in the type of the weights; float32 for int8 weights.
    """
    return floats(jax.tree.map(lambda array: array[rows], weights))
