"""Reading ahead on CPU: cache lines that a loop will need next, spread over the steps of another.

A processor waits if it is told to read many lines at once, so each step of a loop starts one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from emsjax.pallas_kernels.host_call import generate_prefetch

LINE = 64  # bytes that a processor reads at a time
_WORD = ir.IntType(64)


class Ahead(NamedTuple):
    """Runs of bytes to read. Addresses and strides are in bytes.

    Attributes:
      start: address of the first run.
      done: how many bytes of the runs have been read before.
      run: bytes of a run.
      stride: from the beginning of a run to that of the next one.
      step: bytes to read in a step, at most a line; 0 to read none.
    """

    start: Any
    done: Any
    run: Any
    stride: Any
    step: Any


def reader(builder: Any, ahead: Ahead) -> Callable[[], None]:
    """Returns what generates a step's reading, to be called inside of a loop."""
    runs = builder.udiv(ahead.done, ahead.run)
    begin = builder.add(ahead.start, builder.mul(runs, ahead.stride))
    start = cgutils.alloca_once_value(builder, begin)
    place = cgutils.alloca_once_value(builder, builder.urem(ahead.done, ahead.run))
    some = builder.icmp_signed(">", ahead.step, _WORD(0))

    def read() -> None:
        with builder.if_then(some):
            run, byte = builder.load(start), builder.load(place)
            generate_prefetch(builder, builder.add(run, byte))
            byte = builder.add(byte, ahead.step)
            ends = builder.icmp_signed(">=", byte, ahead.run)
            builder.store(builder.select(ends, builder.add(run, ahead.stride), run), start)
            builder.store(builder.select(ends, builder.sub(byte, ahead.run), byte), place)

    return read
