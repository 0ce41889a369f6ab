"""What one device holds of arrays, or of their shapes: how many numbers and how many bytes."""

import math
from typing import Any

import jax

from emsjax.pallas_kernels.quantised import bits_of


def numbers_held(part: Any) -> int:
    """Returns how many numbers the arrays of a tree have."""
    return sum(math.prod(_own_shape(x)) for x in jax.tree.leaves(part))


def bytes_held(part: Any) -> int:
    """Returns the bytes of the arrays of a tree; 4-bit numbers take half a byte."""
    return sum(math.prod(_own_shape(x)) * bits_of(x.dtype) for x in jax.tree.leaves(part)) // 8


def _own_shape(array: Any) -> tuple[int, ...]:
    """Returns the shape of the device's part, if several share the array."""
    place = getattr(array, "sharding", None)
    return array.shape if place is None else place.shard_shape(array.shape)
