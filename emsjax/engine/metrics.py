"""Counts of what a request cost, and their sums over a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest


@dataclass(frozen=True)
class RequestMetrics:
    """Counts of one finished request.

    The host notices a stop string up to 3 steps late. Tokens drafted and accepted in these steps
    are counted too.

    Attributes:
      target_steps: steps that emitted tokens of this request. The last prefill step, which emits
        the first token, is one of them.
      drafted_tokens: draft tokens that the target verified.
      accepted_tokens: draft tokens that the target accepted.
      emitted_tokens: tokens in the output, bonus tokens included.
      drafted_by_position: `drafted_tokens` by position in the draft.
      accepted_by_position: `accepted_tokens` by position in the draft.
      time_to_first_token: seconds from the moment the request takes a slot to its first token.
      prefill_steps: steps that only read the prompt and emitted nothing.
      cached_prompt_tokens: tokens of the prompt that were not read, because the cache held them
        already.
    """

    target_steps: int
    drafted_tokens: int
    accepted_tokens: int
    emitted_tokens: int
    drafted_by_position: tuple[int, ...]
    accepted_by_position: tuple[int, ...]
    time_to_first_token: float
    prefill_steps: int = 0
    cached_prompt_tokens: int = 0

    @property
    def tokens_per_target_step(self) -> float:
        """Emitted tokens per target step; 1.0 for plain decoding, 0.0 if no step ran."""
        return _ratio(self.emitted_tokens, self.target_steps)


def together(outputs: Sequence[RequestMetrics]) -> RequestMetrics:
    """Sums the metrics of several outputs of one prompt.

    `time_to_first_token` is that of the first output, which read the prompt.
    """
    drafted = [sum(each) for each in zip(*(m.drafted_by_position for m in outputs), strict=True)]
    accepted = [sum(each) for each in zip(*(m.accepted_by_position for m in outputs), strict=True)]
    return RequestMetrics(
        target_steps=sum(m.target_steps for m in outputs),
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        emitted_tokens=sum(m.emitted_tokens for m in outputs),
        drafted_by_position=tuple(drafted),
        accepted_by_position=tuple(accepted),
        time_to_first_token=outputs[0].time_to_first_token,
        prefill_steps=sum(m.prefill_steps for m in outputs),
        cached_prompt_tokens=sum(m.cached_prompt_tokens for m in outputs),
    )


@dataclass
class RunTotals:
    """Sums over finished requests, in constant memory.

    Attributes:
      requests: number of requests added.
      target_steps: sum over requests. A step that verified eight requests counts eight times, so
        that tokens per target step is the speculative gain of a request, not the batch size.
      emitted_tokens: sum over requests.
      drafted_by_position: sums over requests, as many as the longest draft has tokens.
      accepted_by_position: sums over requests, as many as the longest draft has tokens.
      first_token_sum: sum of the times to first token, in seconds.
      first_token_max: the longest time to first token, in seconds.
    """

    requests: int = 0
    target_steps: int = 0
    emitted_tokens: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    first_token_sum: float = 0.0
    first_token_max: float = 0.0

    def add(self, metrics: RequestMetrics) -> None:
        """Adds the counts of one finished request."""
        self.requests += 1
        self.target_steps += metrics.target_steps
        self.emitted_tokens += metrics.emitted_tokens
        self.drafted_by_position = _sum(self.drafted_by_position, metrics.drafted_by_position)
        self.accepted_by_position = _sum(self.accepted_by_position, metrics.accepted_by_position)
        self.first_token_sum += metrics.time_to_first_token
        self.first_token_max = max(self.first_token_max, metrics.time_to_first_token)

    @property
    def tokens_per_target_step(self) -> float:
        """Emitted tokens per target step, over all requests."""
        return _ratio(self.emitted_tokens, self.target_steps)

    @property
    def mean_time_to_first_token(self) -> float:
        """Mean time to first token over all requests, in seconds."""
        return _ratio(self.first_token_sum, self.requests)

    @property
    def acceptance_by_position(self) -> list[float | None]:
        """Accepted share of the tokens drafted at each position; None if none were drafted."""
        pairs = zip_longest(self.drafted_by_position, self.accepted_by_position, fillvalue=0)
        return [accepted / drafted if drafted else None for drafted, accepted in pairs]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _sum(left: list[int], right: tuple[int, ...]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]
