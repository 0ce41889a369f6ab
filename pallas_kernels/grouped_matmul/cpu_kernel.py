"""Products with one layer's 4-bit weights on CPU, see `cpu_strips`.

A block of weights becomes floats in the fastest cache, so memory is read 4 bits a weight.
"""

from collections.abc import Callable

import numpy as np
from numba import carray

from emsjax.pallas_kernels import cpu_ahead, cpu_dots, cpu_rows, cpu_strips, small_products
from emsjax.pallas_kernels.cpu_dots import widen_pairs
from emsjax.pallas_kernels.cpu_rows import LANES
from emsjax.pallas_kernels.cpu_strips import KERNELS, count, strip
from emsjax.pallas_kernels.host_call import argument, compiled, pointer, register, size

# Operands besides those of `cpu_strips`: scales [L, G, out], and offsets like them or [0, 0, 0].
_SCALES, _OFFSETS = 3, 4


@compiled
def _fill(
    frame: int, layer: int, out: int, done: int, outs: int, terms: int, wide: np.ndarray
) -> None:
    num_out, num_in = size(frame, KERNELS, 1), size(frame, KERNELS, 2)
    layers, groups = size(frame, _SCALES, 0), size(frame, _SCALES, 1)
    of_group, numbers = num_in // groups, layers * groups * num_out
    scales = carray(pointer(argument(frame, _SCALES)), (numbers,), np.float32)
    offsets = carray(pointer(argument(frame, _OFFSETS)), (numbers,), np.float32)
    shifted = size(frame, _OFFSETS, 0) > 0
    for row in range(outs):
        start = ((layer * num_out + out + row) * num_in + done) // 2
        source = argument(frame, KERNELS) + start
        target = np.int64(wide.ctypes.data) + row * wide.strides[0]
        pairs = carray(pointer(source), (terms // 2,), np.uint8)
        column = 0
        while column < terms:
            group = (done + column) // of_group
            end = min(terms, (group + 1) * of_group - done)
            place = (layer * groups + group) * num_out + out + row
            scale = scales[place]
            offset = offsets[place] if shifted else np.float32(0)
            steps = (end - column) // LANES
            widen_pairs(source + column // 2, target + 4 * column, steps, scale, offset)
            for pair in range((column + LANES * steps) // 2, end // 2):
                both = np.int32(pairs[pair])
                low, high = ((both & 15) ^ 8) - 8, ((both >> 4) ^ 8) - 8
                wide[row, 2 * pair] = np.float32(low) * scale + offset
                wide[row, 2 * pair + 1] = np.float32(high) * scale + offset
            column = end
        for column in range(terms, (terms + LANES - 1) // LANES * LANES):
            wide[row, column] = np.float32(0)


def register_kernel(name: str, dtype: np.dtype, register: Callable[..., object] = register) -> None:
    """Makes the kernel available to XLA as `name`; arguments as for `layer_matmul`."""
    del dtype
    modules = (cpu_ahead, cpu_dots, cpu_rows, cpu_strips, small_products)
    sources = (__file__, *(str(each.__file__) for each in modules))
    register(name, count, strip(_fill, 4, None), sources)
