"""The host's side of decoding: jobs are submitted, pass through the slots, and end.

`Slots.step` refills free slots, runs the device for some steps, and collects what has ended. A
batch (`stream.decode_stream`) and a server (`requests/service.py`) are both loops around it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax

from emsjax.engine.candidates import Candidates
from emsjax.engine.grammar_table import Places
from emsjax.engine.job import Failed, Finished, Job
from emsjax.engine.occupant import Occupant, Snapshot, result_of, take_snapshot
from emsjax.engine.prefixes import Prefixes, Shared
from emsjax.engine.state import DecodeState
from emsjax.engine.waiting import WaitingLine
from emsjax.sampling.automaton import Automaton
from emsjax.sampling.logprobs import Logprobs

# The most steps before the device returns to the host, which takes well under a millisecond.
STEPS_PER_CALL = 32
# The same if a slot is free and a request may come at any time, or if a job's tokens are watched.
STEPS_PER_CALL_WAITING = 4


class Device(Protocol):
    """The programs on the device, as `Engine` provides them."""

    num_slots: int

    @property
    def cache_is_text(self) -> bool:
        """Whether the K/V of a text's tokens lie one after another."""

    @property
    def read_again(self) -> int:
        """The last tokens of a beginning that two texts share which are read again."""

    def take_state(self) -> DecodeState:
        """Returns a state without live slots, which the caller owns."""

    def keep_state(self, state: DecodeState) -> None:
        """Keeps a state without live slots for the next `take_state`."""

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Steps until the host has something to do."""

    def ready_for(self, state: DecodeState, job: Job) -> bool:
        """Whether a job can be admitted without compiling; if not, compiles beside the run."""

    def admit(
        self,
        state: DecodeState,
        slot: int,
        job: Job,
        source: int | None,
        shared: int | None,
        places: Places,
    ) -> DecodeState:
        """Puts a job into a slot; that of `source` holds the prompt's first `shared` tokens."""

    def grammar_places(self) -> Places:
        """Returns the places of the grammars of a state that has none yet."""

    def score(self, prompt: Sequence[int]) -> Logprobs:
        """Returns the log-probability of each token of a prompt but the first."""

    def release(self, state: DecodeState, slot: int) -> DecodeState:
        """Frees a slot before its job is done."""


class Stepped(NamedTuple):
    """The outcome of a call of `Slots.step`.

    Attributes:
      ended: the jobs that have ended, cancelled ones excepted.
      watched: whether a job whose tokens are watched took part.
    """

    ended: Sequence[Finished | Failed]
    watched: bool


class Slots:
    """B slots on a device, and the jobs that wait for them.

    `submit`, `cancel` and `close` may be called from any thread. All other methods belong to the
    one thread that steps.

    While jobs wait for a program to be compiled, others are taken in their place, as many as there
    are slots, see `Candidates`.
    """

    def __init__(
        self,
        device: Device,
        on_progress: Callable[[int], None] | None = None,
        *,
        most_waiting: int | None = None,
        most_running: int | None = None,
        share_prefixes: bool = True,
    ):
        """Starts with free slots; the device's state is taken by the first step.

        Args:
          device: the programs on the device.
          on_progress: called with the number of tokens generated since the last call.
          most_waiting: the most jobs that may wait for a slot; None for no limit.
          most_running: the most jobs in slots at a time; None for as many as there are slots. The
            other slots keep texts for later prompts that begin alike.
          share_prefixes: whether prompts share what the cache holds.
        """
        self._share_prefixes = share_prefixes
        self._device = device
        self._most_running = most_running or device.num_slots
        self._on_progress = on_progress or (lambda _count: None)
        self._state: DecodeState | None = None
        self._slots: list[Occupant | None] = [None] * device.num_slots
        # For each slot the last job admitted, finished or not. Its text is still in the cache.
        self._latest: list[Occupant | None] = [None] * device.num_slots
        self._prefixes = Prefixes(device.num_slots, share_prefixes)
        # Other slots of the same device have a state, and so a table of grammars, of their own.
        self._places = device.grammar_places()
        self._line = WaitingLine(most_waiting)
        self._candidates = Candidates(self._line, self._most_running)
        # Added to by any thread and emptied by the one that steps. Both operations are atomic.
        self._cancelled: deque[Job] = deque()
        self._failed: list[Failed] = []
        self._when_empty: Callable[[], None] | None = None
        self._closed = False
        self._began = time.perf_counter()
        self._steps = 0

    def submit(self, jobs: Sequence[Job], priority: int = 0) -> None:
        """Adds jobs to the line, and wakes the thread that steps.

        Args:
          jobs: in the order in which they get slots; jobs of one group follow each other.
          priority: jobs with a lower number get slots first.

        Raises:
          emsjax.engine.waiting.LineFullError: more jobs would wait than may wait; none was added.
        """
        self._line.put(jobs, priority)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Drops jobs, which then have no result; those that have ended already are ignored.

        A job that runs frees its slot before the next step.
        """
        self._cancelled.extend(job for job in jobs if not self._line.remove(job))
        self._line.notify()

    def close(self) -> None:
        """Makes `wait` return False from now on."""
        self._closed = True
        self._line.notify()

    def wait(self) -> bool:
        """Sleeps until there is something to do; returns False once the slots are closed."""
        self._line.wait_for(lambda: self._closed or self.busy)
        return not self._closed

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(
            any(self._slots)
            or self._candidates
            or self._failed
            or self._cancelled
            or self._when_empty
        )

    @property
    def hungry(self) -> bool:
        """Whether another job would be looked at by the next `fill`."""
        return self._candidates.hungry

    @property
    def running(self) -> int:
        """The number of jobs in slots."""
        return sum(occupant is not None for occupant in self._slots)

    @property
    def _full(self) -> bool:
        return self.running == self._most_running

    @property
    def waiting(self) -> int:
        """The number of jobs without a slot."""
        return len(self._candidates)

    def when_empty(self, call: Callable[[], None]) -> None:
        """Admits nothing until all slots are free, then calls `call` and continues.

        The slots hold no state meanwhile, so that `call` may use the device's memory.
        """
        self._when_empty = call

    def step(self, more: bool = False) -> Stepped:
        """Refills free slots, runs until the host has something to do, and collects.

        A job ends with a `Failed` if the host fails on it. If the device fails, all jobs in slots
        end so, and those that wait find new slots.

        Args:
          more: whether further jobs may be submitted.
        """
        self._drop_cancelled()
        self.fill()
        occupied = self._occupied()
        watched = any(occupant.job.watch for _, occupant in occupied)
        ended: list[Finished | Failed] = []
        if occupied:
            others = more or bool(self._candidates)
            try:
                self._state = self._device.advance(
                    self._taken(), self._max_steps(others, watched), others
                )
                seen = take_snapshot(self._state, [slot for slot, _ in occupied], watched)
            except Exception as error:
                self._lose_all(error)
            else:
                self._collect(seen, occupied, ended)
        ended += self._failed
        self._failed = []
        return Stepped(ended, watched)

    def fill(self) -> None:
        """Puts waiting jobs into free slots, and sets those aside that need a program."""
        if self._when_empty is not None:
            if any(self._slots):
                return
            call, self._when_empty = self._when_empty, None
            self.rest()
            call()
        while not self._full:
            job = self._candidate()
            # A job whose prompt is just being read for another one waits, and copies its K/V then.
            if job is None or self._prompt_is_being_read(job):
                return
            if job.grammar is not None and not self._has_room(job.grammar):
                return  # others will end, and leave its grammar room
            if self._candidates.take(job):  # another thread may have cancelled it meanwhile
                self._admit(job)
        # No slot may be taken. The program that the next job needs is compiled meanwhile.
        self._candidate()

    def _has_room(self, grammar: Automaton) -> bool:
        """Whether a grammar fits beside those of the jobs in slots; keeps rows for it."""
        used = [occupant.job.grammar for _, occupant in self._occupied()]
        return self._places.make_room(grammar, [each for each in used if each is not None])

    def rest(self) -> None:
        """Gives the state back to the device; no slot may be live."""
        assert not any(self._slots)
        if self._state is not None:
            self._device.keep_state(self._state)
        self._forget_state()

    def _forget_state(self) -> None:
        self._state = None
        self._latest = [None] * len(self._slots)
        self._prefixes = Prefixes(len(self._slots), self._share_prefixes)
        self._places = self._device.grammar_places()

    def _taken(self) -> DecodeState:
        """Returns the state, taken from the device at first use."""
        if self._state is None:
            self._state = self._device.take_state()
        return self._state

    def _occupied(self) -> list[tuple[int, Occupant]]:
        return [(slot, o) for slot, o in enumerate(self._slots) if o is not None]

    def _max_steps(self, others: bool, watched: bool) -> int:
        waiting = others and not self._full
        return STEPS_PER_CALL_WAITING if waiting or watched else STEPS_PER_CALL

    def _candidate(self) -> Job | None:
        """Returns the job that gets the next slot, and leaves it where it is; None if none can."""
        # Jobs that start together wait for a program together.
        stepping = any(o is not None and o.first_step < self._steps for o in self._slots)
        return self._candidates.first(
            lambda job: self._device.ready_for(self._taken(), job),
            running=any(self._slots),
            held_up=stepping or self._full,
        )

    def _admit(self, job: Job) -> None:
        """Puts a job into the best free slot; if that fails, the job ends."""
        shared = self._shared(job)
        free = [slot for slot, occupant in enumerate(self._slots) if occupant is None]
        slot = self._prefixes.place(free, job.prompt, shared)
        source, length = (None, 0) if shared is None else shared
        state = self._taken()
        try:
            scores = self._device.score(job.prompt) if job.scores_prompt else None
            self._state = self._device.admit(state, slot, job, source, length, self._places)
        except Exception as error:
            self._failed.append(Failed(job, error))
            if any(array.is_deleted() for array in jax.tree.leaves(state)):
                self._lose_all(error)  # it failed halfway, after the state was given away
            return
        self._prefixes.admit(slot, job.prompt, shared)
        whole = 0 < length == len(job.prompt) - 1 - self._device.read_again
        admitted = Occupant(
            job, time.perf_counter(), self._steps, length, whole, prompt_logprobs=scores
        )
        self._slots[slot] = self._latest[slot] = admitted

    def _siblings(self, job: Job) -> list[int]:
        """Returns the slots whose cache belongs to a job of the same group."""
        if job.group is None:
            return []
        return [n for n, o in enumerate(self._latest) if o is not None and o.job.group is job.group]

    def _prompt_is_being_read(self, job: Job) -> bool:
        """Whether another slot is about to hold more of a job's prompt than any slot does now."""
        siblings = self._siblings(job)
        if any(self._latest[n].seen_tokens for n in siblings):  # type: ignore[union-attr]
            return False
        if any(self._slots[n] is self._latest[n] for n in siblings):
            return True
        return self._prefixes.coming(job.prompt, [slot for slot, _ in self._occupied()])

    def _shared(self, job: Job) -> Shared | None:
        """Returns the longest beginning of the job's prompt that a slot's cache holds."""
        # A first token proves that the whole prompt was read.
        ready = [n for n in self._siblings(job) if self._latest[n].seen_tokens]  # type: ignore[union-attr]
        found = self._prefixes.longest(job.prompt, ready or None)
        if found is None:
            return None
        return found._replace(length=max(found.length - self._device.read_again, 0))

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            job = self._cancelled.popleft()
            self._candidates.drop(job)
            for slot, occupant in self._occupied():
                if occupant.job is job:
                    self._free(slot)

    def _free(self, slot: int) -> None:
        """Frees a slot whose job is live."""
        self._state = self._device.release(self._taken(), slot)
        self._slots[slot] = None

    def _lose_all(self, error: Exception) -> None:
        """Ends all jobs in slots after the device has failed; its state is lost."""
        self._failed += [Failed(occupant.job, error) for _, occupant in self._occupied()]
        self._slots = [None] * len(self._slots)
        self._forget_state()

    def _collect(
        self, seen: Snapshot, occupied: list[tuple[int, Occupant]], ended: list[Finished | Failed]
    ) -> None:
        """Reports progress, and takes the jobs that have ended out of their slots."""
        self._count_steps(seen, occupied)
        for slot, occupant in occupied:
            before = occupant.seen_tokens
            try:
                occupant.update(seen, slot, self._taken())
            except Exception as error:  # of the job's watch
                ended.append(Failed(occupant.job, error))
                self._free(slot)
                continue
            self._on_progress(occupant.seen_tokens - before)
            if seen.live[slot] and not occupant.cut:
                self._prefixes.read(slot, int(seen.kv_lens[slot]))
                continue
            result = result_of(occupant, seen, self._taken(), slot, self._began)
            self._keep_text(slot, result, int(seen.kv_lens[slot]))
            ended.append(result)
            if seen.live[slot]:
                self._free(slot)
            self._slots[slot] = None

    def _keep_text(self, slot: int, result: Finished, cached: int) -> None:
        """Notes what a finished job leaves in its slot's cache."""
        if result.failed:  # there may be numbers in it that are none
            self._prefixes.drop(slot)
        else:
            output = result.token_ids if self._device.cache_is_text else ()
            self._prefixes.finish(slot, output, cached)

    def _count_steps(self, seen: Snapshot, occupied: list[tuple[int, Occupant]]) -> None:
        """Counts the steps since the last snapshot: at least one slot took part in all of them."""
        made = []
        for slot, occupant in occupied:
            steps = int(seen.stats.target_steps[slot] + seen.stats.prefill_steps[slot])
            made.append(steps - occupant.seen_steps)
            occupant.seen_steps = steps
        self._steps += max(made)
