"""Weights in 4 bits with scales and offsets per group of inputs, before they are on a device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Int4(NamedTuple):
    """Weights `value * scale + offset`, with the scale and the offset of an input's group.

    Attributes:
      values: int8[..., out, in], from -8 to 7.
      scales: float32[..., out, G]; the inputs of a group lie next to each other.
      offsets: float32[..., out, G], or None for none.
    """

    values: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "Int4":
        """Returns the same with each of its arrays changed."""
        offsets = None if self.offsets is None else change(self.offsets)
        return Int4(change(self.values), change(self.scales), offsets)

    def dequantised(self, order: np.ndarray | None = None) -> np.ndarray:
        """Returns the weights in float32, with columns in the order of inputs.

        Args:
          order: int32[..., in], the input of each column; None if columns are in order.
        """
        size = self.values.shape[-1] // self.scales.shape[-1]
        wide = self.values * np.repeat(self.scales, size, axis=-1)
        if self.offsets is not None:
            wide += np.repeat(self.offsets, size, axis=-1)
        if order is None:
            return wide
        return np.take_along_axis(wide, np.argsort(order, axis=-1)[..., None, :], axis=-1)


def regrouped(per_group: np.ndarray | None, like: np.ndarray, num_in: int, size: int) -> np.ndarray:
    """Returns numbers per smaller group of inputs, as float32[..., in / size, out].

    Args:
      per_group: numbers per group [..., out, G]; None for zeros.
      like: an array [..., out, G].
      num_in: the number of inputs.
      size: the inputs of a smaller group, a divisor of those of a group.
    """
    if per_group is None:
        *stack, num_out, _ = like.shape
        return np.zeros((*stack, num_in // size, num_out), np.float32)
    repeats = num_in // size // per_group.shape[-1]
    return np.repeat(per_group.swapaxes(-1, -2), repeats, axis=-2)


def packed(values: np.ndarray) -> np.ndarray:
    """Packs numbers from -8 to 7 [..., n] two to a byte, the first in the low bits."""
    whole = values.astype(np.int8).view(np.uint8)
    return (whole[..., ::2] & 15) | (whole[..., 1::2] << 4)


def unpacked(pairs: np.ndarray) -> np.ndarray:
    """Returns int8[..., 2 * n] of what `packed` made, uint8[..., n]."""
    # A shift to the right repeats the sign.
    both = np.stack([(pairs << 4).view(np.int8) >> 4, pairs.view(np.int8) >> 4], axis=-1)
    return both.reshape(*pairs.shape[:-1], -1)
