"""The decoding of one batch of prompts by one contender, some steps at a time."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from emsjax.bench.prompts import Tokens
from emsjax.engine.drafter import observer
from emsjax.engine.engine import Engine
from emsjax.engine.job import NOT_NUMBERS, Job
from emsjax.engine.slots import STEPS_PER_CALL
from emsjax.engine.state import DecodeState
from emsjax.errors import UserError

FAILED = f"{NOT_NUMBERS}; check its weights, or give --dtype float32"


class Run(NamedTuple):
    """One finished decoding of a batch of prompts, or a whole job (see `whole_job`).

    Attributes:
      seconds: time spent in steps, prefill excluded.
      tokens: the text of each prompt, as token ids.
      steps: target steps.
      counts: the fields of `SlotStats`, numpy arrays summed over slots; those that are known.
      prefill: seconds that reading the prompts took.
    """

    seconds: float
    tokens: list[Tokens]
    steps: int
    counts: dict[str, np.ndarray]
    prefill: float


def together(runs: Sequence[Run]) -> Run:
    """The sum of one or more runs, without their texts."""
    counts = {name: np.sum([run.counts[name] for run in runs], axis=0) for name in runs[0].counts}
    seconds, steps = sum(run.seconds for run in runs), sum(run.steps for run in runs)
    return Run(seconds, [], steps, counts, sum(run.prefill for run in runs))


def _observed(engine: Engine, state: DecodeState, jobs: Sequence[Job]) -> DecodeState:
    """Returns a state with the K/V that the drafter has of the jobs' prompts, and no live slots."""
    for slot, job in enumerate(jobs):
        state = engine.admit(state, slot, job, None)
    while bool((state.live & (state.stats.target_steps == 0)).any()):
        state = engine.advance(state, 1, others_wait=False)
    for slot in range(len(jobs)):
        state = engine.release(state, slot)
    return state


class Decoding:
    """A decoding in progress, which times its own steps and nothing else.

    Attributes:
      state: the state of all slots.
      seconds: time spent in steps so far.
    """

    def __init__(self, engine: Engine, state: DecodeState, jobs: Sequence[Job], *, read: bool):
        """Puts the jobs into the slots.

        Args:
          engine: with at least one slot for each job.
          state: a state of the engine whose slots are free.
          jobs: one for each slot, from slot 0.
          read: whether the cache already holds the jobs' prompts.
        """
        self._engine, self._jobs = engine, jobs
        if read and observer(engine.drafter) is not None:
            state = _observed(engine, state, jobs)
        for slot, job in enumerate(jobs):
            state = engine.admit(state, slot, job, slot if read else None)
        self.state = jax.block_until_ready(state)
        self.seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether every text is complete."""
        return not bool(self.state.live.any())

    @property
    def written(self) -> int:
        """The number of tokens written so far, over all texts."""
        return int((self.state.lens - self.state.prompt_lens).sum())

    def advance(self, max_steps: int = STEPS_PER_CALL) -> None:
        """Runs up to `max_steps` more steps."""
        started = time.perf_counter()
        self.state = self._engine.advance(self.state, max_steps, others_wait=False)
        jax.block_until_ready(self.state.live)
        self.seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Runs all remaining steps."""
        while not self.ended:
            self.advance()

    def run(self, prefill: float) -> Run:
        """Returns the result.

        Args:
          prefill: seconds that reading the prompts took.

        Raises:
          UserError: the model failed on a prompt, so that the figures would mean nothing.
        """
        state, jobs = self.state, self._jobs
        tokens, lens, stats = jax.device_get((state.tokens, state.lens, state.stats))
        if stats.failed.any():
            raise UserError(FAILED)
        texts = [
            tuple(tokens[slot, len(job.prompt) : lens[slot]].tolist())
            for slot, job in enumerate(jobs)
        ]
        steps = int(stats.target_steps.max())
        counts = {name: np.asarray(value).sum(axis=0) for name, value in vars(stats).items()}
        return Run(self.seconds, texts, steps, counts, prefill)
