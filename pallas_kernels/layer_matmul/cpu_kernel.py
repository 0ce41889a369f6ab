"""Products with one layer's weights on CPU, see `cpu_strips`; weights are used where they lie."""

from collections.abc import Callable

import numpy as np
from numba import carray

from emsjax.pallas_kernels import cpu_strips, small_products
from emsjax.pallas_kernels.cpu_strips import KERNELS, count, strip
from emsjax.pallas_kernels.host_call import argument, compiled, pointer, register, size


def _block_of(storage: type) -> Callable:
    """Returns the function that finds a block of weights with elements of a type.

    Converting int8 in the fastest cache is quicker than in the product, which would convert each
    number on its own and again for every panel.
    """
    itemsize = np.dtype(storage).itemsize

    @compiled
    def as_it_is(
        frame: int, layer: int, out: int, done: int, rows: int, terms: int, wide: np.ndarray
    ) -> tuple:
        num_out, num_in = size(frame, KERNELS, 1), size(frame, KERNELS, 2)
        start = (layer * num_out + out) * num_in + done
        return argument(frame, KERNELS) + start * itemsize, num_in * itemsize

    @compiled
    def convert(
        frame: int, layer: int, out: int, done: int, rows: int, terms: int, wide: np.ndarray
    ) -> tuple:
        block, stride = as_it_is(frame, layer, out, done, rows, terms, wide)
        for row in range(rows):
            numbers = carray(pointer(block + row * stride), (terms,), np.int8)
            for column in range(terms):
                wide[row, column] = numbers[column]
        return wide.ctypes.data, wide.strides[0]

    return convert if storage is np.int8 else as_it_is


def register_kernel(name: str, dtype: np.dtype, register: Callable[..., object] = register) -> None:
    """Makes the kernel for weights of float32, uint16 or int8 available to XLA as `name`.

    Args:
      name: of the foreign function.
      dtype: of the weights.
      register: `host_call.register`, or `compile_run` only to compile.
    """
    storage, converts = dtype.type, dtype == np.int8
    multiplied = np.dtype(np.float32 if converts else storage)
    sources = (__file__, cpu_strips.__file__, small_products.__file__)
    register(name, count, strip(multiplied, _block_of(storage), converts), sources)
