"""One pass of a stream of jobs through the slots: refill, run, collect."""

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import numpy as np

from emsjax.engine.job import Finished, Job
from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.state import DecodeState, SlotStats
from emsjax.engine.trace import Trace
from emsjax.engine.trace_record import steps_of
from emsjax.sampling.logprobs import of_slot

# How often the host looks in at the least; one look costs well under a millisecond.
STEPS_PER_CALL = 32
# The same where a slot is free and a request may come at any time, or where tokens are watched.
STEPS_PER_CALL_WAITING = 4


class Device(Protocol):
    """What runs on the device; `Engine` is it."""

    num_slots: int

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Steps until there is something for the host to do."""

    def admit(self, state: DecodeState, slot: int, job: Job, source: int | None) -> DecodeState:
        """Puts a job into a slot; `source` is a slot whose cache holds its prompt."""

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """Frees a slot before its job is done."""


class _Look(NamedTuple):
    """What the host sees of all slots at one time; tokens only where it has use for them."""

    lens: np.ndarray
    live: np.ndarray
    stats: SlotStats
    tokens: np.ndarray | None
    time: float

    def output(self, slot: int, span: slice) -> np.ndarray:
        """Tokens of a slot."""
        assert self.tokens is not None
        return self.tokens[slot, span]


@dataclass
class _Occupant:
    """The job in a slot, its start, and when its first token was seen."""

    job: Job
    started: float
    first_step: int
    shared: bool
    first_token: float | None = None
    seen_tokens: int = 0
    seen_steps: int = 0
    cut: bool = False

    def see(self, look: _Look, slot: int) -> None:
        """Takes note of new tokens; the job's watch may end it with one of them."""
        first = len(self.job.prompt) + self.seen_tokens
        new, kept = int(look.lens[slot]) - first, None
        if self.job.watch is not None and new:
            kept = self.job.watch(look.output(slot, slice(first, first + new)).tolist())
        self.cut = kept is not None
        self.seen_tokens += new if kept is None else kept
        if self.seen_tokens and self.first_token is None:
            self.first_token = look.time


class SlotRun:
    """Decodes a stream of jobs, taking one more whenever a slot is free, and one ahead."""

    def __init__(
        self,
        device: Device,
        jobs: Iterable[Job | None],
        on_progress: Callable[[int], None] | None,
    ):
        self._device = device
        self._jobs = iter(jobs)
        self._on_progress = on_progress or (lambda _count: None)
        self._slots: list[_Occupant | None] = [None] * device.num_slots
        # The job that each slot's cache holds the prompt of, finished or not.
        self._latest: list[_Occupant | None] = [None] * device.num_slots
        self._held: Job | None = None
        self._more = True
        self._failure: Exception | None = None
        self._began = time.perf_counter()
        self._steps = 0

    def results(self, state: DecodeState) -> Generator[Finished | None, None, DecodeState]:
        """Runs from a state without live slots; returns such a state, the cache still in it.

        Yields:
          Each result as it is final; None after watched tokens came.
        """
        while True:
            state = self._refill(state)
            if all(self._slots):
                # Only so is it known whether any waits.
                self._held = self._held or self._take()
            if any(self._slots):
                more = self._more or self._held is not None
                state = self._device.advance(state, self._patience(more), more)
                state = yield from self._collect(state)
            elif self._failure is not None:
                raise self._failure
            elif not self._more:
                return state

    def _patience(self, more: bool) -> int:
        waiting = more and not all(self._slots)
        watched = any(slot is not None and slot.job.watch is not None for slot in self._slots)
        return STEPS_PER_CALL_WAITING if waiting or watched else STEPS_PER_CALL

    def _refill(self, state: DecodeState) -> DecodeState:
        for slot, occupant in enumerate(self._slots):
            if occupant is not None:
                continue
            job = self._held = self._held or self._take()
            if job is None or self._prompt_is_being_read(job):
                break
            self._held = None
            source = self._source(job)
            state = self._device.admit(state, slot, job, source)
            taken = _Occupant(job, time.perf_counter(), self._steps, source is not None)
            self._slots[slot] = self._latest[slot] = taken
        return state

    def _take(self) -> Job | None:
        """The next job; None where there is none yet, or none any more.

        A stream that fails ends here; what it gave before is finished first.
        """
        if not self._more:
            return None
        try:
            return next(self._jobs)
        except StopIteration:
            self._more = False
        except Exception as failure:
            self._more, self._failure = False, failure
        return None

    def _siblings(self, job: Job) -> list[int]:
        """Slots whose cache is that of a job of the same group."""
        if job.group is None:
            return []
        return [n for n, o in enumerate(self._latest) if o is not None and o.job.group is job.group]

    def _prompt_is_being_read(self, job: Job) -> bool:
        reading = any(self._slots[n] is self._latest[n] for n in self._siblings(job))
        return reading and self._source(job) is None

    def _source(self, job: Job) -> int | None:
        """A slot whose cache holds all of the job's prompt: one that has had its first token."""
        ready = [n for n in self._siblings(job) if self._latest[n].seen_tokens]  # type: ignore[union-attr]
        return ready[0] if ready else None

    def _collect(self, state: DecodeState) -> Generator[Finished | None, None, DecodeState]:
        """Notes progress and first tokens, and takes finished sequences out of their slots."""
        occupied = [(slot, o) for slot, o in enumerate(self._slots) if o is not None]
        watched = any(occupant.job.watch for _, occupant in occupied)
        look = _look(state, [slot for slot, _ in occupied], watched)
        self._count_steps(look, occupied)
        for slot, occupant in occupied:
            before = occupant.seen_tokens
            occupant.see(look, slot)
            self._on_progress(occupant.seen_tokens - before)
            if look.live[slot] and not occupant.cut:
                continue
            if look.live[slot]:
                state = self._device.release(state, slot)
            self._slots[slot] = None
            yield _finished(occupant, look, state, slot, self._began)
        if watched:
            yield None
        return state

    def _count_steps(self, look: _Look, occupied: list[tuple[int, _Occupant]]) -> None:
        """How many were made since the last look: some slot took part in all of them."""
        made = []
        for slot, occupant in occupied:
            steps = int(look.stats.target_steps[slot] + look.stats.prefill_steps[slot])
            made.append(steps - occupant.seen_steps)
            occupant.seen_steps = steps
        self._steps += max(made)


def _look(state: DecodeState, occupied: list[int], watched: bool) -> _Look:
    lens, live, stats = jax.device_get((state.lens, state.live, state.stats))
    wanted = watched or not live[occupied].all()
    tokens = np.asarray(state.tokens) if wanted else None
    return _Look(lens, live, stats, tokens, time.perf_counter())


def _finished(
    occupant: _Occupant, look: _Look, state: DecodeState, slot: int, began: float
) -> Finished:
    job = occupant.job
    span = slice(len(job.prompt), len(job.prompt) + occupant.seen_tokens)
    logprobs = None
    if job.choice.settings.logprobs and state.sampling is not None:
        logprobs = of_slot(state.sampling.logprobs, len(look.live), slot, span)
    tokens = tuple(look.output(slot, span).tolist())
    steps = int(look.stats.target_steps[slot])
    if occupant.cut:  # steps behind the cut are none of the request's
        steps = int(state.emitted_at[slot, span.stop - 1])
    metrics = _metrics(occupant, look.stats, slot, steps)
    trace = _trace(occupant, look, state, slot, began)
    return Finished(job, tokens, metrics, occupant.cut, logprobs, trace)


def _trace(
    occupant: _Occupant, look: _Look, state: DecodeState, slot: int, began: float
) -> Trace | None:
    if state.drafts is None:
        return None
    span = slice(len(occupant.job.prompt), int(look.lens[slot]))
    emitted_at, drafts = jax.device_get((state.emitted_at[slot], state.drafts[slot]))
    return Trace(
        steps=steps_of(
            look.output(slot, span), emitted_at[span], drafts[:, span], occupant.seen_tokens
        ),
        prefill_steps=int(look.stats.prefill_steps[slot]),
        prompt_shared=occupant.shared,
        slot=slot,
        first_step=occupant.first_step,
        started=occupant.started - began,
        first_token=(occupant.first_token or look.time) - began,
        finished=look.time - began,
        run_began=began,
    )


def _metrics(occupant: _Occupant, stats: SlotStats, slot: int, target_steps: int) -> RequestMetrics:
    drafted, accepted = stats.drafted[slot].tolist(), stats.accepted[slot].tolist()
    return RequestMetrics(
        target_steps=target_steps,
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=occupant.seen_tokens,
        drafted_by_position=tuple(drafted),
        accepted_by_position=tuple(accepted),
        time_to_first_token=(occupant.first_token or occupant.started) - occupant.started,
        prefill_steps=int(stats.prefill_steps[slot]),
    )
