"""Allocates memory that jax can adopt on CPU instead of copying it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes; XLA's CPU client adopts a numpy buffer only with this alignment


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an uninitialised array that `jax.device_put` can adopt without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
