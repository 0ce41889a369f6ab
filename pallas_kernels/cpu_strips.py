"""Products of rows with a layer's weights on CPU, a strip of outputs an item.

An item multiplies its weights with all rows, so that the weights come from memory once, and reads
the next ones ahead meanwhile. Weights of fewer bits than float32 are widened in vectors, see
`cpu_dots`: once for all rows into the fastest cache, or in registers if there are only a few rows.
"""

from collections.abc import Callable

import numpy as np
from numba import carray

from emsjax.pallas_kernels.cpu_ahead import Runs, spread
from emsjax.pallas_kernels.cpu_dots import OUTS, ROWS, Dots, dots_of, height_of
from emsjax.pallas_kernels.cpu_rows import LANES
from emsjax.pallas_kernels.host_call import argument, compiled, pointer, result, size

_STRIP = 32  # outputs of an item
_DEPTH = 2048  # inputs at a time, so that what is multiplied stays in fast caches
_TOGETHER = 16 * ROWS  # rows that stay in the second cache while a strip's weights pass
_FEW = 24  # the most rows for which it is faster to widen weights anew for every few of them
# The first operands, in order: rows float32[T, in], whose width is filled up with zeros to whole
# vectors, kernels [L, out, in] and layer int32[]. The result is float32[T, out].
X, KERNELS, LAYER = range(3)


@compiled
def count(frame: int) -> int:
    """Returns the number of items."""
    return (size(frame, KERNELS, 1) + _STRIP - 1) // _STRIP


def strip(fill: Callable, bits: int, stored: np.dtype | None) -> Callable:
    """Returns the function that computes an item.

    Args:
      fill: a compiled function that makes floats of a block of weights. It takes the frame, the
        layer, the block's first output and input, its numbers of outputs and inputs, and an array
        float32[outputs, inputs], whose rows it fills up with zeros to whole vectors.
      bits: of a weight.
      stored: the type of the weights if `cpu_dots` can read it, else None.
    """
    filled = dots_of(np.dtype(np.float32))
    direct = filled if stored is None else dots_of(stored)
    readable, widens = stored is not None, stored != np.float32

    @compiled
    def compute(frame: int, item: int) -> None:
        rows, width = size(frame, X, 0), size(frame, X, 1)
        num_out, num_in = size(frame, KERNELS, 1), size(frame, KERNELS, 2)
        layer = np.int64(carray(pointer(argument(frame, LAYER)), (1,), np.int32)[0])
        first, row_bytes = item * _STRIP, num_in * bits // 8
        begin = argument(frame, KERNELS) + (layer * num_out + first) * row_bytes
        outs = min(_STRIP, num_out - first)
        lies = readable and num_in == width and (rows <= _FEW or not widens)
        depth = min(width, _DEPTH)
        most = min(rows, _TOGETHER)
        wide = np.empty((OUTS, 0 if lies and outs % OUTS == 0 else depth), np.float32)
        sums = np.empty((most if width > depth else 1, OUTS, LANES), np.float32)
        sums_row = sums.strides[0] if width > depth else 0
        last = np.empty((rows if outs % OUTS else 0, OUTS), np.float32)
        for start in range(0, rows, _TOGETHER):
            end = min(start + _TOGETHER, rows)
            for out in range(0, outs, OUTS):
                whole = outs - out >= OUTS
                here = lies and whole
                target, target_row = result(frame, 0) + 4 * (first + out), 4 * num_out
                if not whole:
                    target, target_row = np.int64(last.ctypes.data), 4 * OUTS
                for done in range(0, width, depth):
                    terms = min(depth, num_in - done)
                    weights = begin + out * row_bytes + done * bits // 8
                    run, weights_row = terms * bits // 8, row_bytes
                    further = Runs(weights + OUTS * row_bytes, run, row_bytes, OUTS * run)
                    if not here:
                        fill(frame, layer, first + out, done, min(OUTS, outs - out), terms, wide)
                        weights, weights_row = np.int64(wide.ctypes.data), wide.strides[0]
                    begins, ends = np.bool_(done == 0), np.bool_(done + depth >= width)
                    # All is read ahead beside the first rows, at the pace of the arithmetic: one
                    # would wait for the other otherwise.
                    row, steps = start, (terms + LANES - 1) // LANES
                    while row < end:
                        height = height_of(end - row)
                        begin_ahead = further.size * min(row, most) // most
                        end_ahead = further.size * min(row + height, most) // most
                        dots = Dots(
                            weights,
                            weights_row,
                            argument(frame, X) + 4 * (row * width + done),
                            4 * width,
                            steps,
                            np.int64(sums.ctypes.data) + (row - start) * sums_row,
                            target + row * target_row,
                            target_row,
                            spread(further, begin_ahead, end_ahead, steps),
                        )
                        if here:
                            direct(dots, height, begins, ends)
                        else:
                            filled(dots, height, begins, ends)
                        row += height
        if outs % OUTS:
            _copy(frame, last, first + outs // OUTS * OUTS, outs % OUTS)

    return compute


@compiled
def _copy(frame: int, last: np.ndarray, first: int, count: int) -> None:
    """Copies the last outputs, which are fewer than are multiplied at once, into the result."""
    rows, num_out = size(frame, X, 0), size(frame, KERNELS, 1)
    out = carray(pointer(result(frame, 0)), (rows, num_out), np.float32)
    for row in range(rows):
        for number in range(count):
            out[row, first + number] = last[row, number]
