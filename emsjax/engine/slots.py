"""The host's side of a run: a stream of jobs passes through the slots (refill, run, collect)."""

import time
from collections import deque
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

# The most steps before the device returns to the host, which takes well under a millisecond.
STEPS_PER_CALL = 32
# The same if a slot is free and a request may come at any time, or if a job's tokens are watched.
STEPS_PER_CALL_WAITING = 4


class Device(Protocol):
    """The programs on the device, as `Engine` provides them."""

    num_slots: int

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Steps until the host has something to do."""

    def ready_for(self, state: DecodeState, job: Job) -> bool:
        """Whether a job can be admitted without compiling; if not, compiles beside the run."""

    def admit(self, state: DecodeState, slot: int, job: Job, source: int | None) -> DecodeState:
        """Puts a job into a slot; `source` is a slot whose cache holds the job's prompt."""

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """Frees a slot before its job is done."""


class _Snapshot(NamedTuple):
    """The slots as the host sees them after a call; tokens only if the host needs them."""

    lens: np.ndarray
    live: np.ndarray
    stats: SlotStats
    tokens: np.ndarray | None
    time: float

    def output(self, slot: int, span: slice) -> np.ndarray:
        """Returns some tokens of a slot."""
        assert self.tokens is not None
        return self.tokens[slot, span]


@dataclass
class _Occupant:
    """The job in a slot, and what the host has seen of it so far.

    Attributes:
      job: the job.
      started: when the job took the slot, by `time.perf_counter`.
      first_step: number of steps that the run had made by then.
      shared: whether the prompt's K/V came from another job's cache.
      first_token: when the host saw the first token; None before.
      seen_tokens: tokens of the output that the host has seen.
      seen_steps: steps of the job that the host has counted.
      cut: whether the job's watch ended it.
    """

    job: Job
    started: float
    first_step: int
    shared: bool
    first_token: float | None = None
    seen_tokens: int = 0
    seen_steps: int = 0
    cut: bool = False

    def update(self, seen: _Snapshot, slot: int) -> None:
        """Counts the new tokens, and lets the job's watch end the job after one of them."""
        first = len(self.job.prompt) + self.seen_tokens
        new, kept = int(seen.lens[slot]) - first, None
        if self.job.watch is not None and new:
            kept = self.job.watch(seen.output(slot, slice(first, first + new)).tolist())
        self.cut = kept is not None
        self.seen_tokens += new if kept is None else kept
        if self.seen_tokens and self.first_token is None:
            self.first_token = seen.time


class SlotRun:
    """Decodes a stream of jobs: takes a job whenever a slot is free, and one job ahead.

    While jobs wait for a program to be compiled, others are taken in their place, as many as there
    are slots.
    """

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
        # For each slot the last job admitted, finished or not. Its prompt is still in the cache.
        self._latest: list[_Occupant | None] = [None] * device.num_slots
        # A job that was taken from the stream and has no slot yet.
        self._held: Job | None = None
        # Jobs that wait for a program, while others pass them and run; at most one for each slot.
        self._aside: deque[Job] = deque()
        self._more = True
        self._failure: Exception | None = None
        self._began = time.perf_counter()
        self._steps = 0

    def results(self, state: DecodeState) -> Generator[Finished | None, None, DecodeState]:
        """Runs all jobs, from a state without live slots to another one, which keeps the cache.

        Yields:
          Each result when it is final; None after new tokens of a watched job.
        """
        while True:
            state = self._refill(state)
            if all(self._slots):
                # Only by taking the next job does the host learn whether any job waits.
                self._candidate(state)
            if any(self._slots):
                more = self._more or self._held is not None or bool(self._aside)
                state = self._device.advance(state, self._max_steps(more), more)
                state = yield from self._collect(state)
            elif self._failure is not None:
                raise self._failure
            elif not self._more:
                return state

    def _max_steps(self, more: bool) -> int:
        waiting = more and not all(self._slots)
        watched = any(slot is not None and slot.job.watch is not None for slot in self._slots)
        return STEPS_PER_CALL_WAITING if waiting or watched else STEPS_PER_CALL

    def _refill(self, state: DecodeState) -> DecodeState:
        for slot, occupant in enumerate(self._slots):
            if occupant is not None:
                continue
            job = self._candidate(state)
            # A job whose prompt is just being read for another one waits, and copies its K/V then.
            if job is None or self._prompt_is_being_read(job):
                break
            self._held = None
            source = self._source(job)
            state = self._device.admit(state, slot, job, source)
            admitted = _Occupant(job, time.perf_counter(), self._steps, source is not None)
            self._slots[slot] = self._latest[slot] = admitted
        return state

    def _candidate(self, state: DecodeState) -> Job | None:
        """Returns the job that gets the next slot, and holds it; None if there is none yet.

        A job that needs a program which is not compiled yet is set aside as long as others run.
        """
        if self._held is None and self._aside and self._device.ready_for(state, self._aside[0]):
            self._held = self._aside.popleft()
        while self._held is None and len(self._aside) < len(self._slots):
            job = self._next_job()
            if job is None:
                break
            if self._would_wait() and not self._device.ready_for(state, job):
                self._aside.append(job)
            else:
                self._held = job
        if self._held is None and self._aside and not any(self._slots):
            self._held = self._aside.popleft()  # nothing is left to run meanwhile
        return self._held

    def _would_wait(self) -> bool:
        """Whether compiling at once would hold up jobs: others than those that start together."""
        stepping = any(o is not None and o.first_step < self._steps for o in self._slots)
        return stepping or all(self._slots) or bool(self._aside)

    def _next_job(self) -> Job | None:
        """Returns the next job; None if the stream has none yet, or has ended.

        An error of the stream is kept, and raised once all earlier jobs are finished.
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
        """Returns the slots whose cache belongs to a job of the same group."""
        if job.group is None:
            return []
        return [n for n, o in enumerate(self._latest) if o is not None and o.job.group is job.group]

    def _prompt_is_being_read(self, job: Job) -> bool:
        """Whether a job of the same group is in a slot, and none has a finished prompt to copy."""
        reading = any(self._slots[n] is self._latest[n] for n in self._siblings(job))
        return reading and self._source(job) is None

    def _source(self, job: Job) -> int | None:
        """Returns a slot whose cache holds the job's whole prompt; None if there is none.

        A first token proves that the whole prompt was read.
        """
        ready = [n for n in self._siblings(job) if self._latest[n].seen_tokens]  # type: ignore[union-attr]
        return ready[0] if ready else None

    def _collect(self, state: DecodeState) -> Generator[Finished | None, None, DecodeState]:
        """Reports progress, takes finished jobs out of their slots, and yields their results."""
        occupied = [(slot, o) for slot, o in enumerate(self._slots) if o is not None]
        watched = any(occupant.job.watch for _, occupant in occupied)
        seen = _snapshot(state, [slot for slot, _ in occupied], watched)
        self._count_steps(seen, occupied)
        for slot, occupant in occupied:
            before = occupant.seen_tokens
            occupant.update(seen, slot)
            self._on_progress(occupant.seen_tokens - before)
            if seen.live[slot] and not occupant.cut:
                continue
            if seen.live[slot]:
                state = self._device.release(state, slot)
            self._slots[slot] = None
            yield _finished(occupant, seen, state, slot, self._began)
        if watched:
            yield None
        return state

    def _count_steps(self, seen: _Snapshot, occupied: list[tuple[int, _Occupant]]) -> None:
        """Counts the steps since the last snapshot: at least one slot took part in all of them."""
        made = []
        for slot, occupant in occupied:
            steps = int(seen.stats.target_steps[slot] + seen.stats.prefill_steps[slot])
            made.append(steps - occupant.seen_steps)
            occupant.seen_steps = steps
        self._steps += max(made)


def _snapshot(state: DecodeState, occupied: list[int], watched: bool) -> _Snapshot:
    lens, live, stats = jax.device_get((state.lens, state.live, state.stats))
    # Tokens are copied to the host only if a job has ended or its tokens are watched.
    wanted = watched or not live[occupied].all()
    tokens = np.asarray(state.tokens) if wanted else None
    return _Snapshot(lens, live, stats, tokens, time.perf_counter())


def _finished(
    occupant: _Occupant, seen: _Snapshot, state: DecodeState, slot: int, began: float
) -> Finished:
    job = occupant.job
    span = slice(len(job.prompt), len(job.prompt) + occupant.seen_tokens)
    logprobs = None
    if job.choice.settings.logprobs and state.sampling is not None:
        logprobs = of_slot(state.sampling.logprobs, len(seen.live), slot, span)
    tokens = tuple(seen.output(slot, span).tolist())
    steps = int(seen.stats.target_steps[slot])
    if occupant.cut:  # Steps after the cut are not counted.
        steps = int(state.emitted_at[slot, span.stop - 1])
    metrics = _metrics(occupant, seen.stats, slot, steps)
    trace = _trace(occupant, seen, state, slot, began)
    # The device may run past the token after which the watch ended the job, and fail there.
    failed = bool(seen.stats.failed[slot]) and not occupant.cut
    return Finished(job, tokens, metrics, occupant.cut, failed, logprobs, trace)


def _trace(
    occupant: _Occupant, seen: _Snapshot, state: DecodeState, slot: int, began: float
) -> Trace | None:
    if state.drafts is None:
        return None
    span = slice(len(occupant.job.prompt), int(seen.lens[slot]))
    emitted_at, drafts = jax.device_get((state.emitted_at[slot], state.drafts[slot]))
    return Trace(
        steps=steps_of(
            seen.output(slot, span), emitted_at[span], drafts[:, span], occupant.seen_tokens
        ),
        prefill_steps=int(seen.stats.prefill_steps[slot]),
        prompt_shared=occupant.shared,
        slot=slot,
        first_step=occupant.first_step,
        started=occupant.started - began,
        first_token=(occupant.first_token or seen.time) - began,
        finished=seen.time - began,
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
