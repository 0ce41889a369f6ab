"""The plan for a setting: does it fit, what does a step take, how much faster does it get."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emsjax.costs.roofline import bounds, cached_costs
from emsjax.engine.ladder import Rung
from emsjax.engine.worth import StepCosts
from emsjax.pallas_kernels.backends import compiling_for
from emsjax.plan.memory import Memory, largest_batch
from emsjax.plan.program import Program, compile_program, estimate, usable_bytes
from emsjax.plan.setting import Setting
from emsjax.plan.speedup import Speedup, expected_speedup

# Batch sizes whose speedup is told beside that of the setting.
BATCH_SIZES = (1, 4, 16, 64)


class StepTime(NamedTuple):
    """A step on one rung.

    Attributes:
      rung: its shape.
      purpose: "plain", "drafts" or "prompts".
      seconds: by bytes and operations.
      bound: what takes that long, "memory" or "matrix units".
      compiler_seconds: by the compiler's own estimate, attention by bytes; None without it.
    """

    rung: Rung
    purpose: str
    seconds: float
    bound: str
    compiler_seconds: float | None


class BatchSpeedup(NamedTuple):
    """Expected speedup at one batch size.

    Attributes:
      num_slots: B.
      estimated: by bytes and operations.
      by_compiler: by the compiler's estimates; None for batches that were not compiled.
    """

    num_slots: int
    estimated: Speedup
    by_compiler: Speedup | None


@dataclass(frozen=True)
class Plan:
    """What came out.

    Attributes:
      setting: what was asked.
      usable_bytes: of the device's memory.
      wanted: memory of the batch that was asked for.
      largest: memory of the largest batch that fits; None where not even one sample does.
      shown: the setting of `steps`: as asked, or with the largest batch if that does not fit.
      steps: each rung of its ladder, cheapest first; none where nothing fits.
      speedups: at several batch sizes; likewise.
    """

    setting: Setting
    usable_bytes: int
    wanted: Memory
    largest: Memory | None
    shown: Setting
    steps: tuple[StepTime, ...]
    speedups: tuple[BatchSpeedup, ...]

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for does."""
        return self.wanted.total <= self.usable_bytes


def make_plan(setting: Setting, compiling: bool, say: Callable[[str], None]) -> Plan:
    """Compiles as few programs as it takes, and counts the rest.

    Args:
      setting: what is planned for.
      compiling: whether the TPU compiler is asked, or all is arithmetic.
      say: told what is being compiled.

    Raises:
      UserError: the compiler cannot compile the program.
    """
    programs: dict[int, Program] = {}

    def measure(num_slots: int) -> Memory:
        if compiling:
            say(f"compiling {setting.name} for {setting.hardware.name}, batch {num_slots}")
        make = compile_program if compiling else estimate
        programs[num_slots] = make(setting.at(num_slots))
        return programs[num_slots].memory

    usable = usable_bytes(setting, compiling)
    counted = estimate(setting)
    wanted = counted.memory
    # What certainly does not fit takes the compiler as long as what does.
    if wanted.total - wanted.temporaries <= usable:
        wanted = measure(setting.num_slots)
    largest = largest_batch(wanted, usable, measure)
    if largest is None:
        return Plan(setting, usable, wanted, None, setting, (), ())
    shown = setting.at(min(setting.num_slots, largest.num_slots))
    program = programs.get(shown.num_slots, counted)
    batches = {n for n in BATCH_SIZES if n <= largest.num_slots}
    batches |= {shown.num_slots, largest.num_slots}
    return Plan(
        setting,
        usable,
        wanted,
        largest,
        shown,
        tuple(_steps(shown, program)),
        tuple(_speedup(setting.at(n), counted, programs.get(n)) for n in sorted(batches)),
    )


def _steps(setting: Setting, program: Program) -> Iterator[StepTime]:
    costs, by_compiler = program.costs, _compiler_costs(setting, program)
    cached = setting.num_slots * setting.attended
    emitting = setting.num_slots * (setting.draft_length + 1)
    least = bounds(program.sizes, setting.hardware, program.ladder, emitting)
    for number, rung in enumerate(program.ladder):
        attending = float(costs.cached[number]) * cached
        computing = least.computing[number] > max(least.reading[number], attending)
        compiler = by_compiler and float(by_compiler.rungs[number]) + attending
        seconds = float(costs.rungs[number]) + attending
        bound = "matrix units" if computing else "memory"
        yield StepTime(rung, _purpose(rung, setting.draft_length), seconds, bound, compiler)


def _purpose(rung: Rung, draft_length: int) -> str:
    if rung.max_q_len == 1:
        return "plain"
    return "drafts" if rung.max_q_len <= draft_length + 1 else "prompts"


def _compiler_costs(setting: Setting, program: Program) -> StepCosts | None:
    """By the cycles that the compiler expects; of its kernels it says nothing: by bytes."""
    if program.cycles is None:
        return None
    cycles = np.asarray(program.cycles.rungs, np.float64) + program.cycles.around
    seconds = (cycles / setting.hardware.hertz).astype(np.float32)
    attending = cached_costs(program.sizes, setting.hardware, program.ladder, setting.num_slots)
    return StepCosts(seconds, attending, np.float32(0))


def _speedup(setting: Setting, counted: Program, program: Program | None) -> BatchSpeedup:
    """At the setting's batch size; `program` is that batch's, where there is one."""
    with compiling_for(setting.platform):
        ladder, costs = setting.ladder(), setting.costs(counted.sizes)
    by_compiler = program and _compiler_costs(setting, program)
    return BatchSpeedup(
        setting.num_slots,
        _expected(setting, ladder, costs),
        by_compiler and _expected(setting, ladder, by_compiler),
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
