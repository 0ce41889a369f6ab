"""Reading ahead on CPU: cache lines that a loop will need next, spread over the steps of another.

A processor waits if it is told to read many lines at once, so each step of a loop starts one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from emsjax.pallas_kernels.host_call import compiled, generate_prefetch

_LINE = 64  # bytes that a processor reads at a time
_WORD = ir.IntType(64)


class Runs(NamedTuple):
    """Runs of bytes to read. Addresses and strides are in bytes.

    Attributes:
      start: address of the first run.
      run: bytes of a run.
      stride: from the beginning of a run to that of the next one.
      size: bytes of all runs.
    """

    start: Any
    run: Any
    stride: Any
    size: Any


class Ahead(NamedTuple):
    """What to read of some runs in the steps of a loop.

    Attributes:
      start: see `Runs`.
      run: see `Runs`.
      stride: see `Runs`.
      done: how many bytes of the runs have been read before.
      step: how many bytes to read at once, at most a line.
      times: how often to do so in a step of the loop; 0 to read none.
    """

    start: Any
    run: Any
    stride: Any
    done: Any
    step: Any
    times: Any


@compiled
def spread(runs: Runs, begin: Any, end: Any, steps: Any) -> Ahead:
    """Spreads the reading of the runs' bytes from `begin` to `end` over some steps of a loop."""
    size, steps = end - begin, max(steps, 1)
    times = (size + steps * _LINE - 1) // (steps * _LINE)
    step = (size + steps * times - 1) // max(steps * times, 1)
    return Ahead(runs.start, runs.run, runs.stride, begin, step, times)


def reader(builder: Any, ahead: Ahead, once: bool = False) -> Callable[[], None]:
    """Returns what generates a step's reading, to be called inside of a loop.

    With `once`, a step reads at most once. A loop of a few instructions needs this: its compiler
    takes a condition out of the loop, but not another loop.
    """
    runs = builder.udiv(ahead.done, ahead.run)
    begin = builder.add(ahead.start, builder.mul(runs, ahead.stride))
    start = cgutils.alloca_once_value(builder, begin)
    place = cgutils.alloca_once_value(builder, builder.urem(ahead.done, ahead.run))
    some = builder.icmp_signed(">", ahead.times, _WORD(0))

    def read() -> None:
        reading = builder.if_then(some) if once else cgutils.for_range(builder, ahead.times)
        with reading:
            run, byte = builder.load(start), builder.load(place)
            generate_prefetch(builder, builder.add(run, byte))
            byte = builder.add(byte, ahead.step)
            ends = builder.icmp_signed(">=", byte, ahead.run)
            builder.store(builder.select(ends, builder.add(run, ahead.stride), run), start)
            builder.store(builder.select(ends, builder.sub(byte, ahead.run), byte), place)

    return read
