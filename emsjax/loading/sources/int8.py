"""Weights in int8 with one float32 scale per output channel, before they are on a device."""

import math
from typing import NamedTuple

import numpy as np

_LARGEST = 127
_NUMBERS = 1 << 22  # weights to quantise at a time, which limits temporaries


class Int8(NamedTuple):
    """Weights `values * scale[..., None]`.

    Attributes:
      values: int8[..., out, in].
      scale: float32[..., out].
    """

    values: np.ndarray
    scale: np.ndarray

    def dequantised(self) -> np.ndarray:
        """Returns the weights in float32."""
        return self.values * self.scale[..., None]


def quantise(weights: np.ndarray, into: Int8) -> None:
    """Rounds weights to int8, so that the largest of each row becomes 127 or -127.

    Args:
      weights: floats [..., out, in].
      into: arrays for the result.

    Raises:
      ValueError: a weight is not a finite number.
    """
    rows = weights.reshape(-1, weights.shape[-1])
    values, scales = into.values.reshape(rows.shape), into.scale.reshape(-1)
    step = max(_NUMBERS // rows.shape[1], 1)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        wide = rows[part].astype(np.float32)
        scale = np.abs(wide).max(axis=1, initial=0) / np.float32(_LARGEST)
        if not np.isfinite(scale).all():
            raise ValueError("a weight is not a finite number")
        scales[part] = scale
        # A row whose scale is 0 holds zeros, or numbers too small for a scale.
        wide /= np.where(scale > 0, scale, math.inf)[:, None]
        values[part] = np.clip(np.rint(wide, out=wide), -_LARGEST, _LARGEST, out=wide)
