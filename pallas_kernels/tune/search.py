"""Times a call with each candidate and keeps the fastest, if it is clearly faster."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.tune.candidates import CANDIDATES, Choice
from emsjax.pallas_kernels.tuned import Lookup, noting_lookups, trying

# A choice that gains less than this share is no choice but noise.
LEAST_GAIN = 0.02
# Calls in one program, so that starting it does not count, and programs whose median counts.
CALLS, PROGRAMS = 50, 7

Call = Callable[..., jax.Array]
# Returns the seconds of one call, given the call and its arguments.
Timer = Callable[[Call, tuple[Any, ...]], float]


class Found(NamedTuple):
    """The outcome for one kernel and its sizes.

    Attributes:
      lookup: what the kernel asked for.
      blocks: the fastest block sizes; empty if none is clearly faster than the heuristics'.
      seconds: of a call with them.
      heuristic_seconds: of a call with the heuristics'.
      failed: how many candidates did not compile or run.
    """

    lookup: Lookup
    blocks: Choice
    seconds: float
    heuristic_seconds: float
    failed: int


def search(call: Call, arguments: tuple[Any, ...], seconds_of: Timer) -> Iterator[Found]:
    """Yields the outcome for each kernel in a call that has candidates.

    Args:
      call: the operation; its first argument is the layer, see `seconds_of_call`.
      arguments: of the call.
      seconds_of: the timer.
    """
    with noting_lookups() as lookups:
        jax.eval_shape(functools.partial(call), *arguments)  # see `_fastest`
    for lookup in dict.fromkeys(lookups):
        yield _fastest(lookup, call, arguments, seconds_of)


def _fastest(lookup: Lookup, call: Call, arguments: tuple[Any, ...], seconds_of: Timer) -> Found:
    def timed(blocks: Choice) -> float:
        with trying(lookup.kernel, blocks):
            # A new function, because jax would not trace a known one again.
            return seconds_of(functools.partial(call), arguments)

    usual, failed, measured = timed({}), 0, list[tuple[float, Choice]]()
    for blocks in CANDIDATES[lookup.kernel](lookup.sizes, lookup.blocks):
        if lookup.blocks._replace(**blocks) == lookup.blocks:
            continue
        try:
            measured.append((timed(blocks), blocks))
        except Exception:  # compilers refuse blocks in many ways
            failed += 1
    seconds, blocks = min(measured, key=lambda each: each[0], default=(usual, {}))
    if seconds > (1 - LEAST_GAIN) * usual:
        seconds, blocks = usual, {}
    return Found(lookup, blocks, seconds, usual, failed)


def seconds_of_call(call: Call, arguments: tuple[Any, ...]) -> float:
    """Returns the seconds of one call on this device.

    Args:
      call: takes the layer and the other arguments.
      arguments: the number of layers and the other arguments. Each call uses another layer, so that
        its weights or cache come from memory.
    """
    num_layers, *others = arguments

    @jax.jit
    def run(*given: Any) -> jax.Array:
        def one(number: jax.Array, total: jax.Array) -> jax.Array:
            out = call(number % num_layers, *given)
            return total + out[(0,) * out.ndim].astype(jnp.float32)

        return jax.lax.fori_loop(0, CALLS, one, jnp.float32(0))

    compiled = run.lower(*others).compile()
    compiled(*others).block_until_ready()
    times = []
    for _ in range(PROGRAMS):
        started = time.perf_counter()
        compiled(*others).block_until_ready()
        times.append((time.perf_counter() - started) / CALLS)
    return statistics.median(times)
