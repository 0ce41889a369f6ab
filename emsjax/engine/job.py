"""The engine's input and output: jobs and their results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace
from emsjax.sampling.automaton import Automaton
from emsjax.sampling.choice import GREEDY, Choice
from emsjax.sampling.logprobs import Logprobs

# How a job can fail, as the beginning of a message.
NOT_NUMBERS = (
    "the model gave logits that are not numbers (NaN, infinity, or -infinity for every token)"
)

# Receives a job's new tokens in order. Returns after how many of them the job ends, or None to
# continue.
Watch = Callable[[Sequence[int]], int | None]
# Receives the log-probabilities of the tokens that `Watch` has kept, as numpy arrays [tokens, ...].
WatchLogprobs = Callable[[Logprobs], None]


@dataclass(frozen=True)
class Job:
    """One sequence to generate.

    Attributes:
      key: identifies the job in its result.
      prompt: token ids, 1 to S - 1 of them.
      max_tokens: the most tokens to generate. The cache's capacity is a limit too.
      stop_ids: tokens that end the output, at most `limits.MAX_STOP_IDS`.
      choice: how the tokens are chosen.
      group: consecutive jobs with the same object here have the same prompt, which is read once for
        all of them; None for a job without a group.
      watch: called with the new tokens every few steps; it may end the job.
      watch_logprobs: called after `watch`, if the job asks for log-probabilities.
      grammar: what the output may be; None for any text. `choice` is made with `in_grammar` then.
      scores_prompt: whether the prompt's own tokens get log-probabilities.
      traced: whether the result has a trace, if the engine records them.
    """

    key: object
    prompt: Sequence[int]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    choice: Choice = GREEDY
    group: object | None = None
    watch: Watch | None = None
    watch_logprobs: WatchLogprobs | None = None
    grammar: Automaton | None = None
    scores_prompt: bool = False
    traced: bool = True


@dataclass(frozen=True)
class Finished:
    """The result of a job.

    Attributes:
      job: the job.
      token_ids: the generated tokens, including the stop token. A failed job may have none.
      metrics: the cost of the job.
      cut: whether `job.watch` ended it.
      failed: whether it ended because the target's logits after the last token leave no choice: one
        of them is NaN or infinite, or all are -inf.
      logprobs: numpy arrays [tokens, ...]; None if the job did not ask for them.
      trace: where each token came from, without texts; None if the engine records none, or the
        job is not `traced`.
      prompt_logprobs: numpy arrays [prompt - 1, ...], for all tokens of the prompt but the first;
        None unless `job.scores_prompt`.
    """

    job: Job
    token_ids: tuple[int, ...]
    metrics: RequestMetrics
    cut: bool = False
    failed: bool = False
    logprobs: Logprobs | None = None
    trace: Trace | None = None
    prompt_logprobs: Logprobs | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop token ended the output, rather than a limit or `job.watch`."""
        if self.cut or self.failed or not self.token_ids:
            return False
        return self.token_ids[-1] in self.job.stop_ids


@dataclass(frozen=True)
class Failed:
    """A job that ended because the host or the device failed.

    Attributes:
      job: the job.
      error: what was raised.
    """

    job: Job
    error: Exception
