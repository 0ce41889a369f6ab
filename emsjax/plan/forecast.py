"""Forecasts whether a setting fits in memory, how long a step takes, and the speedup."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from emsjax.costs.roofline import (
    bounds,
    cached_costs,
    exchange_seconds,
    expert_seconds,
    product_seconds,
    weights_read,
)
from emsjax.engine.ladder import Rung
from emsjax.engine.step_costs import StepCosts
from emsjax.plan.estimate import Program, estimate, published_bytes
from emsjax.plan.memory import Memory, largest_batch
from emsjax.plan.setting import Setting
from emsjax.plan.slices import Slice
from emsjax.plan.speedup import Speedup, expected_speedup
from emsjax.plan.splits import Split

# Batch sizes whose speedup is forecast in addition to the setting's.
BATCH_SIZES = (1, 4, 16, 64)
# Acceptances whose speedup is forecast in addition to the setting's.
ACCEPTANCES = (0.5, 0.7, 0.9)


class StepTime(NamedTuple):
    """Time of a step on one rung.

    Attributes:
      rung: shape of the step.
      purpose: what the rung is for, "plain", "drafts" or "prompts".
      seconds: estimate from bytes and operations.
      bound: what limits `seconds`, "memory" or "matrix units".
      compiler_seconds: the compiler's own estimate, plus attention, experts and products with 4-bit
        weights estimated from bytes and operations; None if nothing was compiled.
      weights_bytes: bytes of weights that a device reads in the step.
      exchange_seconds: the part of both estimates in which devices exchange what they computed.
    """

    rung: Rung
    purpose: str
    seconds: float
    bound: str
    compiler_seconds: float | None
    weights_bytes: int
    exchange_seconds: float


class BatchSpeedup(NamedTuple):
    """Expected speedup at one batch size.

    Attributes:
      num_slots: B.
      estimated: from step times that are estimated from bytes and operations.
      by_compiler: from the compiler's step times; None for a batch that was not compiled.
      by_acceptance: estimated like `estimated`, for other acceptances and the setting's, rising.
    """

    num_slots: int
    estimated: Speedup
    by_compiler: Speedup | None
    by_acceptance: tuple[tuple[float, Speedup], ...] = ()


@dataclass(frozen=True)
class Forecast:
    """The forecast for one setting.

    Batches are those of one replica, and memory is that of one device.

    Attributes:
      setting: the setting as requested.
      usable_bytes: device memory that a program may use.
      requested: memory of the requested batch.
      largest: memory of the largest batch that fits; None if not even one sample fits.
      shown: the setting of `steps`: the requested one, or the one with the largest batch if the
        requested batch does not fit.
      steps: step time on each rung of the ladder, cheapest first; empty if nothing fits.
      speedups: speedup at several batch sizes; empty if nothing fits.
      splits: the ways to use several devices; empty for one device.
    """

    setting: Setting
    usable_bytes: int
    requested: Memory
    largest: Memory | None
    shown: Setting
    steps: tuple[StepTime, ...]
    speedups: tuple[BatchSpeedup, ...]
    splits: tuple[Split, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the requested batch fits."""
        return self.requested.total <= self.usable_bytes

    @property
    def samples(self) -> int:
        """The requested samples of all replicas."""
        return self.splits[0].samples if self.splits else self.setting.num_slots


def make_forecast(setting: Setting, compiling: bool, say: Callable[[str], None]) -> Forecast:
    """Makes a forecast, compiling as few programs as possible.

    Args:
      setting: the model, device and batch.
      compiling: whether to use the device's compiler; otherwise everything is estimated.
      say: called with a line about each program before it is compiled.

    Raises:
      UserError: the compiler rejects the program.
    """
    programs: dict[int, Program] = {}

    def measure(num_slots: int) -> Memory:
        if compiling:
            devices = Slice(setting.topology, setting.shards)
            say(f"compiling {setting.name} for {devices}, batch {num_slots}")
        programs[num_slots] = make(setting.at(num_slots))
        return programs[num_slots].memory

    make, usable_bytes = _by_compiler() if compiling else (estimate, published_bytes)
    usable = usable_bytes(setting)
    counted = estimate(setting)
    requested = counted.memory
    # A program that cannot fit is not compiled: that would take as long as for one that fits.
    if requested.total - requested.temporaries <= usable:
        requested = measure(setting.num_slots)
    largest = largest_batch(requested, usable, measure)
    if largest is None:
        return Forecast(setting, usable, requested, None, setting, (), ())
    shown = setting.at(min(setting.num_slots, largest.num_slots))
    program = programs.get(shown.num_slots, counted)
    batches = {n for n in BATCH_SIZES if n <= largest.num_slots}
    batches |= {shown.num_slots, largest.num_slots}
    return Forecast(
        setting,
        usable,
        requested,
        largest,
        shown,
        tuple(_steps(shown, program)),
        tuple(_speedup(setting.at(n), counted, programs.get(n)) for n in sorted(batches)),
    )


def _by_compiler() -> tuple[Callable[[Setting], Program], Callable[[Setting], int]]:
    """Returns what compiles a program, and what asks for usable memory."""
    # Imported here because compiling takes jax, and estimates do not.
    from emsjax.plan.program import compile_program, usable_bytes

    return compile_program, usable_bytes


def _steps(setting: Setting, program: Program) -> Iterator[StepTime]:
    """Yields the step time on each rung of the program's ladder."""
    costs, by_compiler = program.costs, _compiler_costs(setting, program)
    cached = setting.num_slots * setting.attended
    least = bounds(
        program.sizes,
        setting.hardware,
        program.ladder,
        num_slots=setting.num_slots,
        draft_length=setting.draft_length,
    )
    read = weights_read(program.sizes, program.ladder, setting.num_slots)
    exchanging = exchange_seconds(program.sizes, setting.hardware, program.ladder)
    for number, rung in enumerate(program.ladder):
        attending = float(costs.cached[number]) * cached
        computing = least.computing[number] > max(least.reading[number], attending)
        compiler = by_compiler and float(by_compiler.rungs[number]) + attending
        seconds = float(costs.rungs[number]) + attending
        bound = "matrix units" if computing else "memory"
        purpose = _purpose(rung, setting.draft_length)
        yield StepTime(
            rung,
            purpose,
            seconds,
            bound,
            compiler,
            round(read[number]),
            float(exchanging[number]),
        )


def _purpose(rung: Rung, draft_length: int) -> str:
    """Returns what a rung is for, see `StepTime.purpose`."""
    if rung.max_q_len == 1:
        return "plain"
    return "drafts" if rung.max_q_len <= draft_length + 1 else "prompts"


def _compiler_costs(setting: Setting, program: Program) -> StepCosts | None:
    """Returns step costs from the compiler's cycle estimates, or None if there are none.

    The compiler has no estimate for the kernels of attention, experts and products with 4-bit
    weights, nor for what devices exchange, so these are estimated from bytes and operations.
    """
    if program.cycles is None:
        return None
    hardware, sizes = setting.hardware, program.sizes
    found = program.cycles
    cycles = np.add(found.rungs, found.starts, dtype=np.float64) + found.around
    seconds = cycles / hardware.hertz
    seconds += expert_seconds(sizes, hardware, program.ladder, setting.num_slots)
    seconds += exchange_seconds(sizes, hardware, program.ladder)
    if setting.quantize == "int4":
        nbytes, flops = setting.grouped_sizes()
        seconds += product_seconds(nbytes, flops, sizes, hardware, program.ladder)
    attending = cached_costs(sizes, hardware, program.ladder, setting.num_slots)
    return StepCosts(seconds.astype(np.float32), attending, np.float32(0))


def _speedup(setting: Setting, counted: Program, program: Program | None) -> BatchSpeedup:
    """Returns the speedup at the setting's batch size.

    Args:
      setting: the model, device and batch.
      counted: estimated program of the model, for its sizes.
      program: program of this batch size, or None.
    """
    ladder, costs = setting.ladder(), setting.costs(counted.sizes)
    by_compiler = program and _compiler_costs(setting, program)
    return BatchSpeedup(
        setting.num_slots,
        _expected(setting, ladder, costs),
        by_compiler and _expected(setting, ladder, by_compiler),
        tuple(
            (acceptance, _expected(replace(setting, acceptance=acceptance), ladder, costs))
            for acceptance in sorted({*ACCEPTANCES, setting.acceptance})
        ),
    )


def _expected(setting: Setting, ladder: tuple[Rung, ...], costs: StepCosts) -> Speedup:
    return expected_speedup(
        costs,
        ladder,
        num_slots=setting.num_slots,
        context=setting.attended,
        acceptance=setting.acceptance,
        draft_length=setting.draft_length,
    )
