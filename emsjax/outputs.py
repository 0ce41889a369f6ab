"""What a finished request gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emsjax.metrics import RequestMetrics

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class CompletionOutput:
    """One generated continuation.

    Attributes:
      index: which of the request's outputs this is.
      text: the decoded tokens, or None where the model came without a tokenizer.
      token_ids: the generated tokens, without the prompt's.
      finish_reason: "stop" at end of text or a stop token, "length" at `max_tokens` or at the end
        of the model's context.
      stop_reason: the id in `stop_token_ids` that ended it; None for any other end.
      logprobs: always None in this release.
    """

    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | None = None
    logprobs: Sequence[Mapping[int, float]] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    Attributes:
      request_id: as the request was given it.
      prompt: the text that was tokenised (for messages, the chat template's rendering), or None
        where the prompt came as token ids.
      prompt_token_ids: the prompt's tokens.
      outputs: the continuations; one in this release.
      metrics: what the request cost.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
