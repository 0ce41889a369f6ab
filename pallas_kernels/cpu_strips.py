"""Products of rows with float32 weights on CPU, compiled by Numba, a strip of outputs an item.

An item multiplies its weights with all rows, so that the weights come from memory once. A row's
terms are added in the same order however many rows there are.
"""

import numpy as np
from numba import carray

from emsjax.pallas_kernels.host_call import argument, compiled, pointer, result, size
from emsjax.pallas_kernels.small_products import Product, product_of

_STRIP = 32  # outputs of an item
_TOGETHER = 8  # outputs whose weights stay in the fastest cache while all rows use them
_DEPTH = 2048  # inputs at a time, whose part of the rows stays in the second cache
# The first operands, in order: panels of rows float32[P, in, W], kernels [L, out, in] and layer
# int32[]. The result has the same panels, float32[P, out, W].
X, KERNELS, LAYER = range(3)

_multiply = product_of(np.dtype(np.float32))


@compiled
def count(frame: int) -> int:
    """Returns the number of items."""
    return (size(frame, KERNELS, 1) + _STRIP - 1) // _STRIP


@compiled
def strip(frame: int, item: int) -> None:
    """Computes an item."""
    panels, width = size(frame, X, 0), size(frame, X, 2)
    num_out, num_in = size(frame, KERNELS, 1), size(frame, KERNELS, 2)
    layer = np.int64(carray(pointer(argument(frame, LAYER)), (1,), np.int32)[0])
    first = item * _STRIP
    outs = min(_STRIP, num_out - first)
    begin = argument(frame, KERNELS) + 4 * (layer * num_out + first) * num_in
    out_row = 4 * width
    for done in range(0, num_in, _DEPTH):
        terms = min(_DEPTH, num_in - done)
        for out in range(0, outs, _TOGETHER):
            rows = min(_TOGETHER, outs - out)
            for panel in range(panels):
                product = Product(
                    begin + 4 * (out * num_in + done),
                    4 * num_in,
                    4,
                    argument(frame, X) + (panel * num_in + done) * out_row,
                    out_row,
                    result(frame, 0) + (panel * num_out + first + out) * out_row,
                    out_row,
                    terms,
                )
                _multiply(product, rows, width, done > 0)
