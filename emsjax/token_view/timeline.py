"""The timeline of a run: which request was in which slot at each step of the batch."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emsjax.cli.words import count
from emsjax.engine.trace import Trace
from emsjax.token_view.columns import Columns, columns, highest
from emsjax.token_view.shown import ShownOutput

_MOST_TICKS = 10


@dataclass(frozen=True)
class Stay:
    """The stay of an output in its slot, measured in steps of the batch.

    Attributes:
      output: the output.
      first: the first step, from 0.
      prefill: the number of steps that read the prompt; the last of them also emits the first
        token.
      length: the number of all steps.
      description: the same in words, one line each.
    """

    output: ShownOutput
    first: int
    prefill: int
    length: int
    description: list[str]


@dataclass(frozen=True)
class Lane:
    """A slot with its stays in order."""

    slot: int
    stays: list[Stay]
    columns: Columns


@dataclass(frozen=True)
class Timeline:
    """One run of the engine.

    Attributes:
      lanes: one per slot, in order.
      steps: the number of steps of the run, up to the end of the last shown output.
      highest: the most tokens that a slot emitted in one step.
      ticks: the steps to mark on the axis.
    """

    lanes: list[Lane]
    steps: int
    highest: int
    ticks: list[int]


def timelines(outputs: Sequence[ShownOutput]) -> list[Timeline]:
    """Makes one timeline for each run, in order."""
    runs: dict[float, list[ShownOutput]] = defaultdict(list)
    for output in outputs:
        runs[output.trace.run_began].append(output)
    return [_timeline(runs[began]) for began in sorted(runs)]


def _timeline(outputs: Iterable[ShownOutput]) -> Timeline:
    slots: dict[int, list[Stay]] = defaultdict(list)
    for output in sorted(outputs, key=lambda output: output.trace.first_step):
        slots[output.trace.slot].append(_stay(output))
    stays = [stay for each in slots.values() for stay in each]
    steps = max(stay.first + stay.length for stay in stays)
    return Timeline(
        lanes=[Lane(slot, slots[slot], _columns(slots[slot])) for slot in sorted(slots)],
        steps=steps,
        highest=max(highest(stay.output.trace.steps) for stay in stays),
        ticks=list(range(0, steps + 1, _between_ticks(steps))),
    )


def _stay(output: ShownOutput) -> Stay:
    trace = output.trace
    # The last step of the prefill is the first step of the trace, unless the output failed there.
    prefill = 0 if trace.prompt_shared else trace.prefill_steps + bool(trace.steps)
    length = trace.prefill_steps + len(trace.steps)
    return Stay(output, trace.first_step, prefill, length, _described(output, trace, prefill))


def _described(output: ShownOutput, trace: Trace, prefill: int) -> list[str]:
    first = trace.first_step + 1
    last = trace.first_step + trace.prefill_steps + len(trace.steps)
    which = "which" if prefill == 1 else "the last of which"
    reading = count(prefill, "step")
    if trace.steps:
        reading = f"{reading}, {which} also emitted the first token"
    return [
        f"Request {output.name}",
        f"slot {trace.slot}, steps {first} to {last} of the batch",
        f"prefill: {reading if prefill else 'none, shared with another output of the request'}",
        f"decode: {count(output.emitted, 'token')} in {count(len(output.steps), 'step')}",
        f"from {trace.started:.2f} s to {trace.finished:.2f} s"
        + (f", first token at {trace.first_token:.2f} s" if trace.steps else ""),
    ]


def _columns(stays: Iterable[Stay]) -> Columns:
    return columns(
        (stay.first + stay.output.trace.prefill_steps + position, step)
        for stay in stays
        for position, step in enumerate(stay.output.trace.steps)
    )


def _between_ticks(steps: int) -> int:
    """The distance of ticks: the smallest 1, 2 or 5 times a power of ten with few enough ticks."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power * _MOST_TICKS >= steps:
                return factor * power
        power *= 10
