"""Memory that jax takes over on CPU instead of copying."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes; XLA's CPU client adopts a numpy buffer only when aligned so


def aligned_empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialised array that `jax.device_put` can adopt without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
