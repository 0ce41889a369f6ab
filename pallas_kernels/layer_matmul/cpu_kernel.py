"""Products with one layer's weights on CPU, see `cpu_strips`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from emsjax.pallas_kernels import cpu_ahead, cpu_dots, cpu_rows, cpu_strips, small_products
from emsjax.pallas_kernels.cpu_dots import widen_of
from emsjax.pallas_kernels.host_call import argument, compiled, register, size


def _fill_of(stored: np.dtype) -> Callable:
    """Returns the function that makes floats of a block of weights of a type."""
    widen, itemsize, kernels = widen_of(stored), stored.itemsize, cpu_strips.KERNELS

    @compiled
    def fill(
        frame: int, layer: int, out: int, done: int, outs: int, terms: int, wide: np.ndarray
    ) -> None:
        num_out, num_in = size(frame, kernels, 1), size(frame, kernels, 2)
        for row in range(outs):
            start = (layer * num_out + out + row) * num_in + done
            target: Any = np.int64(wide.ctypes.data) + row * wide.strides[0]
            widen(argument(frame, kernels) + start * itemsize, target, terms)

    return fill


def register_kernel(name: str, dtype: np.dtype, register: Callable[..., object] = register) -> None:
    """Makes the kernel for weights of float32, uint16 or int8 available to XLA as `name`.

    Args:
      name: of the foreign function.
      dtype: of the weights.
      register: `host_call.register`, or `compile_run` only to compile.
    """
    modules = (cpu_ahead, cpu_dots, cpu_rows, cpu_strips, small_products)
    sources = (__file__, *(str(each.__file__) for each in modules))
    strip = cpu_strips.strip(_fill_of(dtype), 8 * dtype.itemsize, dtype)
    register(name, cpu_strips.count, strip, sources)
