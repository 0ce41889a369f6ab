"""A batch of prompts that one contender decodes, some steps at a time."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from emsjax.bench.prompts import Tokens
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.slots import STEPS_PER_CALL
from emsjax.engine.state import DecodeState


class Run(NamedTuple):
    """One decoding of a batch of prompts that had been read.

    Attributes:
      seconds: from the first step to the last.
      tokens: what each prompt gave.
      steps: target steps.
      counts: of `SlotStats`, numpy arrays summed over slots.
      prefill: seconds that reading the prompts took.
    """

    seconds: float
    tokens: list[Tokens]
    steps: int
    counts: dict[str, np.ndarray]
    prefill: float


def together(runs: Sequence[Run]) -> Run:
    """The sum of several; without their texts."""
    counts = {name: np.sum([run.counts[name] for run in runs], axis=0) for name in runs[0].counts}
    seconds, steps = sum(run.seconds for run in runs), sum(run.steps for run in runs)
    return Run(seconds, [], steps, counts, sum(run.prefill for run in runs))


class Decoding:
    """Goes on when told to; only that is timed.

    Attributes:
      state: of all slots.
      seconds: so far.
    """

    def __init__(self, engine: Engine, state: DecodeState, jobs: Sequence[Job], *, read: bool):
        """Puts the jobs into the slots.

        Args:
          engine: of as many slots or more.
          state: with free slots.
          jobs: slot by slot.
          read: whether the cache holds their prompts.
        """
        self._engine, self._jobs = engine, jobs
        for slot, job in enumerate(jobs):
            state = engine.admit(state, slot, job, slot if read else None)
        self.state = jax.block_until_ready(state)
        self.seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether all texts are written."""
        return not bool(self.state.live.any())

    @property
    def written(self) -> int:
        """Tokens of all texts so far."""
        return int((self.state.lens - self.state.prompt_lens).sum())

    def go_on(self, max_steps: int = STEPS_PER_CALL) -> None:
        """Some steps more."""
        started = time.perf_counter()
        self.state = self._engine.advance(self.state, max_steps, others_wait=False)
        jax.block_until_ready(self.state.live)
        self.seconds += time.perf_counter() - started

    def to_its_end(self) -> None:
        """All steps that are left."""
        while not self.ended:
            self.go_on()

    def run(self, prefill: float) -> Run:
        """What came of it; `prefill` is what reading the prompts took."""
        state, jobs = self.state, self._jobs
        tokens, lens, stats = jax.device_get((state.tokens, state.lens, state.stats))
        texts = [
            tuple(tokens[slot, len(job.prompt) : lens[slot]].tolist())
            for slot, job in enumerate(jobs)
        ]
        steps = int(stats.target_steps.max())
        counts = {name: np.asarray(value).sum(axis=0) for name, value in vars(stats).items()}
        return Run(self.seconds, texts, steps, counts, prefill)
