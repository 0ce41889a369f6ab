"""What the engine is given to decode, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace
from emsjax.sampling.choice import GREEDY, Choice
from emsjax.sampling.logprobs import Logprobs

# Sees a job's new tokens in their order; says after how many of them it ends, or None.
Watch = Callable[[Sequence[int]], int | None]


@dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
      key: comes back with the result.
      prompt: token ids, 1 to S - 1 of them.
      max_tokens: the most tokens to generate; the cache's capacity bounds it too.
      stop_ids: tokens that end it, at most `state.MAX_STOP_IDS`.
      choice: how its tokens are chosen.
      group: jobs one after another with the same object here have the same prompt, which is
        read once for all of them; None for a job of its own.
      watch: called with the tokens as they come, every few steps; it may end the job.
    """

    key: object
    prompt: Sequence[int]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    choice: Choice = GREEDY
    group: object | None = None
    watch: Watch | None = None


@dataclass(frozen=True)
class Finished:
    """A job's result.

    Attributes:
      job: as it was given.
      token_ids: what was generated, the stop token included.
      metrics: what it cost.
      cut: whether `job.watch` ended it.
      logprobs: numpy arrays [tokens, ...]; None where they were not wanted.
      trace: how it came about, without texts; None where the engine does not note it.
    """

    job: Job
    token_ids: tuple[int, ...]
    metrics: RequestMetrics
    cut: bool = False
    logprobs: Logprobs | None = None
    trace: Trace | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop token ended it, and not a limit or `job.watch`."""
        return not self.cut and self.token_ids[-1] in self.job.stop_ids
