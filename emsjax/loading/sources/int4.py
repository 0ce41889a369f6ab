"""Weights in 4 bits with scales and offsets per group of inputs, before they are on a device."""

from typing import NamedTuple

import numpy as np


class Int4(NamedTuple):
    """Weights `value * scale + offset`, with the scale and the offset of an input's group.

    Attributes:
      values: int8[out, in], from -8 to 7.
      scales: float32[out, G]; the inputs of a group lie next to each other.
      offsets: float32[out, G], or None for none.
    """

    values: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None


def regrouped(per_group: np.ndarray | None, like: np.ndarray, num_in: int, size: int) -> np.ndarray:
    """Returns numbers per smaller group of inputs, as float32[in / size, out].

    Args:
      per_group: numbers per group [out, G]; None for zeros.
      like: an array [out, G].
      num_in: the number of inputs.
      size: the inputs of a smaller group, a divisor of those of a group.
    """
    if per_group is None:
        return np.zeros((num_in // size, len(like)), np.float32)
    return np.repeat(per_group.T, num_in // size // per_group.shape[1], axis=0)
