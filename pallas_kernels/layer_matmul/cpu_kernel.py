"""Products with one layer's weights on CPU, compiled by Numba; the weights are used where they lie.

An item is a strip of the outputs. It multiplies its weights with all rows, so that the weights come
from memory once. A row's terms are added in the same order however many rows there are.
"""

from collections.abc import Callable

import numpy as np
from numba import carray

from emsjax.pallas_kernels import small_products
from emsjax.pallas_kernels.host_call import (
    argument,
    compiled,
    pointer,
    register,
    result,
    size,
)
from emsjax.pallas_kernels.small_products import Product, product_of

_STRIP = 32  # outputs of an item
_TOGETHER = 8  # outputs whose weights stay in the fastest cache while all rows use them
_DEPTH = 2048  # inputs at a time, whose part of the rows stays in the second cache
# The operands, in order: panels of rows float32[P, in, W], kernels [L, out, in] and layer int32[].
# The result has the same panels, float32[P, out, W].
_X, _KERNELS, _LAYER = range(3)


@compiled
def _count(frame: int) -> int:
    return (size(frame, _KERNELS, 1) + _STRIP - 1) // _STRIP


def _strip(storage: type) -> Callable:
    """Returns the function that computes an item, for kernels with elements of a type."""
    itemsize, multiply = np.dtype(storage).itemsize, product_of(np.dtype(storage))

    @compiled
    def compute(frame: int, item: int) -> None:
        panels, width = size(frame, _X, 0), size(frame, _X, 2)
        num_out, num_in = size(frame, _KERNELS, 1), size(frame, _KERNELS, 2)
        layer = np.int64(carray(pointer(argument(frame, _LAYER)), (1,), np.int32)[0])
        first = item * _STRIP
        outs = min(_STRIP, num_out - first)
        weights = argument(frame, _KERNELS) + (layer * num_out + first) * num_in * itemsize
        out_row = 4 * width
        for done in range(0, num_in, _DEPTH):
            terms = min(_DEPTH, num_in - done)
            for out in range(0, outs, _TOGETHER):
                for panel in range(panels):
                    product = Product(
                        weights + (out * num_in + done) * itemsize,
                        num_in * itemsize,
                        itemsize,
                        argument(frame, _X) + (panel * num_in + done) * out_row,
                        out_row,
                        result(frame, 0) + (panel * num_out + first + out) * out_row,
                        out_row,
                        terms,
                    )
                    multiply(product, min(_TOGETHER, outs - out), width, done > 0)

    return compute


def register_kernel(name: str, dtype: np.dtype) -> None:
    """Makes the kernel for weights of a type, float32 or uint16, available to XLA as `name`."""
    register(name, _count, _strip(dtype.type), (__file__, small_products.__file__))
