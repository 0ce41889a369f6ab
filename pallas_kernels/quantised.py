"""Weights in int8 with one float32 scale per output channel, or in 4 bits with one per group."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

# What the names of a quantised parameter's companions have after its own: one scale per output
# channel of int8; or scales and offsets per group of 4 bits, and the order of inputs.
SCALE, SCALES, OFFSETS, ORDER = "_scale", "_scales", "_offsets", "_order"


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grouped:
    """Weights in 4 bits: the columns of each output are in G groups of equal size, one by one.

    A weight is `value * scale + offset`, with the scale and the offset of its group. Columns are
    inputs, in another order if groups would not lie one after another otherwise.

    Attributes:
      values: int4[..., out, in].
      scales: float32[..., G, out].
      offsets: float32[..., G, out]; None for none.
      order: int32[..., in], the input of each column; None if they are in order.
    """

    values: jax.Array
    scales: jax.Array
    offsets: jax.Array | None = None
    order: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights, [..., out, in]."""
        return self.values.shape

    @property
    def size(self) -> int:
        """The number of inputs in a group."""
        return self.values.shape[-1] // self.scales.shape[-2]


Weights = jax.Array | Quantised | Grouped


def weights_of(module: Any, name: str) -> Weights:
    """Returns the weights that a module's parameters hold: floats, int8 or 4 bits.

    Args:
      module: the module.
      name: of the parameter; those of its scales have this name and an ending.
    """
    values = getattr(module, name)[...]
    if (scales := getattr(module, name + SCALES, None)) is not None:
        others = (getattr(module, name + end, None) for end in (OFFSETS, ORDER))
        return Grouped(values, scales[...], *(None if x is None else x[...] for x in others))
    scale = getattr(module, name + SCALE)
    return values if scale is None else Quantised(values, scale[...])


def bits_of(dtype: jnp.dtype) -> int:
    """Returns the bits that a number takes in an array: 4 for int4, which NumPy keeps in a byte."""
    return 4 if dtype == jnp.int4 else 8 * dtype.itemsize


def floats(weights: Weights) -> jax.Array:
    """Returns the weights as they are if they are not quantised, otherwise in float32.

    Their columns are in the order of inputs.
    """
    if isinstance(weights, Quantised):
        return weights.values.astype(jnp.float32) * weights.scale[..., None]
    if isinstance(weights, Grouped):
        wide = weights.values.astype(jnp.float32) * _per_input(weights.scales, weights.size)
        if weights.offsets is not None:
            wide = wide + _per_input(weights.offsets, weights.size)
        if weights.order is None:
            return wide
        columns = jnp.argsort(weights.order, axis=-1)
        return jnp.take_along_axis(wide, columns[..., None, :], axis=-1)
    return weights


def _per_input(groups: jax.Array, size: int) -> jax.Array:
    """Spreads numbers per group [..., G, out] over their inputs, [..., out, in]."""
    return jnp.repeat(groups.swapaxes(-1, -2), size, axis=-1)


def take_rows(weights: Weights, rows: jax.Array) -> jax.Array:
    """Looks up rows of an embedding.

    Args:
      weights: [V, E], not in groups.
      rows: int32[...], each from 0 to V - 1.

    Returns:
      [..., E] in the type of the weights; float32 for int8 weights.
    """
    return floats(jax.tree.map(lambda array: array[rows], weights))


def some_rows(weights: Weights, rows: slice) -> Weights:
    """Returns some of the rows of a stack of weights [L, out, in]."""
    if isinstance(weights, Grouped):
        groups = (weights.scales, weights.offsets)
        scales, offsets = jax.tree.map(lambda per_row: per_row[..., rows], groups)
        return Grouped(weights.values[:, rows], scales, offsets, weights.order)
    return jax.tree.map(lambda array: array[:, rows], weights)
