"""The host's side of decoding: requests into slots, results out of them.

The device loop runs by itself; the host comes in to refill slots, to note times and to take
finished sequences.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.drafters.base import Drafter
from emsjax.ladder import Rung
from emsjax.loop import run
from emsjax.metrics import RequestMetrics
from emsjax.model_protocol import Model
from emsjax.state import MAX_STOP_IDS, DecodeState, SlotStats, admit, empty_state

# How often the host looks in at the least; one look costs well under a millisecond.
STEPS_PER_CALL = 32
# The same where a slot is free and a request may come at any time.
STEPS_PER_CALL_WAITING = 4


@dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
      key: comes back with the result.
      prompt: token ids, 1 to S - 1 of them.
      max_tokens: the most tokens to generate; the cache's capacity bounds it too.
      stop_ids: tokens that end it, at most `MAX_STOP_IDS`.
    """

    key: object
    prompt: Sequence[int]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A job's result.

    Attributes:
      job: as it was given.
      token_ids: what was generated, the stop token included.
      metrics: what it cost.
    """

    job: Job
    token_ids: tuple[int, ...]
    metrics: RequestMetrics

    @property
    def stopped(self) -> bool:
        """Whether a stop token ended it, and not a limit."""
        return self.token_ids[-1] in self.job.stop_ids


@dataclass
class _Occupant:
    """The job in a slot, its start, and when its first token was seen."""

    job: Job
    started: float
    first_token: float | None = None
    seen_tokens: int = 0


class Engine:
    """Decodes jobs in B slots of S tokens with one compiled loop."""

    def __init__(
        self,
        model: Model,
        drafter: Drafter,
        ladder: Sequence[Rung],
        *,
        num_slots: int,
        capacity: int,
    ):
        """Compiles nothing yet and allocates nothing; the first `run` does.

        Args:
          model: the target, an nnx module.
          drafter: guesses tokens.
          ladder: shapes of a step, see `make_ladder`.
          num_slots: B.
          capacity: S, tokens of a slot, prompt and output.
        """
        self.num_slots, self.capacity = num_slots, capacity
        graphdef, self._params = nnx.split(model)
        self.cache_spec = model.cache_spec(num_slots, capacity)
        self._drafter = drafter
        # float32 means float32: TPUs and newer GPUs would round its products to fewer bits.
        precision = "highest" if model.dtype == jnp.float32 else None

        def run_loop(
            params: nnx.State, state: DecodeState, max_steps: jax.Array, others_wait: jax.Array
        ) -> DecodeState:
            with jax.default_matmul_precision(precision):
                target = nnx.merge(graphdef, params)
                return run(target, drafter, ladder, state, max_steps, others_wait)

        def admit_job(state: DecodeState, slot: jax.Array, *request: jax.Array) -> DecodeState:
            state = admit(state, slot, *request)
            return state.replace(drafter=drafter.admit(state.drafter, slot))

        self._run_loop = jax.jit(run_loop, donate_argnums=1)
        self._admit = jax.jit(admit_job, donate_argnums=0)
        self._make_empty = jax.jit(self._empty)
        self._idle: DecodeState | None = None

    def lower(self, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Lowered:
        """The decode program, for reading what it compiles to.

        Args:
          sharding: where the arguments lie; names a device to compile for that is not there.
        """
        scalar, flag = (jax.ShapeDtypeStruct((), t) for t in (jnp.int32, jnp.bool))
        arguments = (self._params, jax.eval_shape(self._empty), scalar, flag)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
        )
        return self._run_loop.lower(*placed)

    def _empty(self) -> DecodeState:
        cache = jnp.zeros(self.cache_spec.shape, self.cache_spec.dtype)
        drafter_state = self._drafter.init(self.num_slots, self.capacity)
        return empty_state(cache, self._drafter.draft_length, drafter_state)

    def run(
        self, jobs: Iterable[Job | None], on_progress: Callable[[int], None] | None = None
    ) -> Iterator[Finished]:
        """Decodes all jobs, taking one more whenever a slot is free.

        Args:
          jobs: taken one at a time. None among them says that none is ready yet: the jobs at
            hand go on meanwhile. If taking one raises, those before it are finished first.
          on_progress: called with the number of tokens generated since the last call.

        Yields:
          Each result as it is final, in the order in which they finish.
        """
        state = self._idle if self._idle is not None else self._make_empty()
        # A run that is left half-way leaves its slots occupied: the next one starts afresh.
        self._idle = None
        self._idle = yield from _Run(self, jobs, on_progress).results(state)


class _Run:
    """One pass over a stream of jobs."""

    def __init__(
        self,
        engine: Engine,
        jobs: Iterable[Job | None],
        on_progress: Callable[[int], None] | None,
    ):
        self._engine = engine
        self._jobs = iter(jobs)
        self._on_progress = on_progress or (lambda _count: None)
        self._slots: list[_Occupant | None] = [None] * engine.num_slots
        self._more = True
        self._failure: Exception | None = None

    def results(self, state: DecodeState) -> Generator[Finished, None, DecodeState]:
        """Runs from a state without live slots; returns such a state, the cache still in it."""
        engine = self._engine
        while True:
            state = self._refill(state)
            if any(self._slots):
                waiting = self._more and not all(self._slots)
                steps = np.int32(STEPS_PER_CALL_WAITING if waiting else STEPS_PER_CALL)
                others_wait = np.bool(self._more)
                state = engine._run_loop(engine._params, state, steps, others_wait)
                yield from self._collect(state)
            elif self._failure is not None:
                raise self._failure
            elif not self._more:
                return state

    def _refill(self, state: DecodeState) -> DecodeState:
        for slot, occupant in enumerate(self._slots):
            if occupant is not None:
                continue
            if (job := self._take()) is None:
                break
            self._slots[slot] = _Occupant(job, time.perf_counter())
            state = self._engine._admit(state, np.int32(slot), *self._request(job))
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

    def _request(self, job: Job) -> tuple[np.ndarray, ...]:
        """The job as `state.admit` wants it."""
        capacity, length = self._engine.capacity, len(job.prompt)
        prompt = np.zeros(capacity, np.int32)
        prompt[:length] = job.prompt
        stop_ids = np.full(MAX_STOP_IDS, -1, np.int32)
        stop_ids[: len(job.stop_ids)] = job.stop_ids
        max_len = min(length + job.max_tokens, capacity)
        return prompt, np.asarray(length, np.int32), np.asarray(max_len, np.int32), stop_ids

    def _collect(self, state: DecodeState) -> Iterator[Finished]:
        """Notes progress and first tokens, and takes finished sequences out of their slots."""
        occupied = [occupant is not None for occupant in self._slots]
        lens, live, stats = jax.device_get((state.lens, state.live, state.stats))
        now = time.perf_counter()
        tokens = None if live[occupied].all() else np.asarray(state.tokens)
        for slot, occupant in enumerate(self._slots):
            if occupant is None:
                continue
            emitted = int(lens[slot]) - len(occupant.job.prompt)
            if emitted and occupant.first_token is None:
                occupant.first_token = now
            self._on_progress(emitted - occupant.seen_tokens)
            occupant.seen_tokens = emitted
            if tokens is not None and not live[slot]:
                self._slots[slot] = None
                output = tokens[slot, lens[slot] - emitted : lens[slot]]
                metrics = _metrics(occupant, stats, slot)
                yield Finished(occupant.job, tuple(output.tolist()), metrics)


def _metrics(occupant: _Occupant, stats: SlotStats, slot: int) -> RequestMetrics:
    drafted, accepted = stats.drafted[slot].tolist(), stats.accepted[slot].tolist()
    return RequestMetrics(
        target_steps=int(stats.target_steps[slot]),
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=occupant.seen_tokens,
        drafted_by_position=tuple(drafted),
        accepted_by_position=tuple(accepted),
        time_to_first_token=(occupant.first_token or occupant.started) - occupant.started,
        prefill_steps=int(stats.prefill_steps[slot]),
    )
