"""Blocks of an int8 cache as the products of attention on CPU read them: in float32, scaled.

Converting a block in the fastest cache is quicker than in the product, which would convert each
number on its own, and again for every few columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray

from emsjax.pallas_kernels.host_call import argument, compiled, pointer, size
from emsjax.pallas_kernels.ragged_attention.cpu_tiles import SCALES, Q

_SHARED = 128  # tokens whose scales share a row, see `int8_cache`


class Place(NamedTuple):
    """A block of one head's keys or values.

    Attributes:
      layer: its layer.
      slot: its slot.
      first: position of its first token.
      tokens: how many tokens it has.
      number: which head of a token's it is: its keys, then its values.
    """

    layer: Any
    slot: Any
    first: Any
    tokens: Any
    number: Any


def widened_for(storage: type) -> tuple[Callable, np.dtype]:
    """Returns a function that makes a block of keys or values readable, and what a product reads.

    The function takes the frame, the address of the first token, the stride between tokens, the
    block's place, and an array [tokens, H]. It returns the address and the stride to use, of the
    array if it wrote the block there.
    """
    itemsize = np.dtype(storage).itemsize

    @compiled
    def as_it_is(frame: int, token: int, stride: int, place: Place, wide: np.ndarray) -> tuple:
        return token + place.number * size(frame, Q, 2) * itemsize, stride

    @compiled
    def convert(frame: int, token: int, stride: int, place: Place, wide: np.ndarray) -> tuple:
        slots, tiles, rows = size(frame, SCALES, 1), size(frame, SCALES, 2), size(frame, SCALES, 3)
        # Blocks divide the tokens whose scales share a row.
        row = ((place.layer * slots + place.slot) * tiles + place.first // _SHARED) * rows
        start = (row + place.number) * _SHARED + place.first % _SHARED
        scales = carray(pointer(argument(frame, SCALES) + 4 * start), (place.tokens,), np.float32)
        width = wide.shape[1]
        head = token + place.number * width
        for j in range(place.tokens):
            numbers = carray(pointer(head + j * stride), (width,), np.int8)
            for h in range(width):
                wide[j, h] = numbers[h] * scales[j]
        return np.int64(wide.ctypes.data), np.int64(wide.strides[0])

    return (convert, np.dtype(np.float32)) if storage is np.int8 else (as_it_is, np.dtype(storage))
