"""What a finished request gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Logprob:
    """How likely the model held one token.

    Attributes:
      logprob: natural logarithm of its probability, before bias, penalties and temperature.
      rank: its place among all tokens, 1 for the likeliest.
      decoded_token: its text; None where the model came without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(frozen=True)
class CompletionOutput:
    """One generated continuation.

    Attributes:
      index: which of the request's outputs this is.
      text: the decoded tokens, without a stop token and cut before a stop string; None where the
        model came without a tokenizer.
      token_ids: the generated tokens, without the prompt's; the last is the one that ended it.
      finish_reason: "stop" at end of text, a stop token or a stop string, "length" at `max_tokens`
        or at the end of the model's context.
      stop_reason: the stop string, or the id in `stop_token_ids`, that ended it; None for any other
        end.
      logprobs: for each token, by token id: the token's own first, then the likeliest ones; None
        where they were not asked for.
      trace: where each token came from; None unless the `LLM` was made with `trace=True`.
    """

    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: Sequence[Mapping[int, Logprob]] | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    Attributes:
      request_id: as the request was given it.
      prompt: the text that was tokenised (for messages, the chat template's rendering), or None
        where the prompt came as token ids.
      prompt_token_ids: the prompt's tokens.
      outputs: the continuations, `n` of them.
      metrics: what the request cost, all of its outputs together.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics


@dataclass(frozen=True)
class Piece:
    """What is new of one output while it is generated.

    Attributes:
      request_id: of its request.
      index: which of the request's outputs.
      text: text that is final: no later token changes it, and no stop string can begin in it; may
        be empty. None where the model came without a tokenizer.
      token_ids: tokens since the last piece. They may be ahead of the text.
      finish_reason: with the output's last piece, how it ended; else None.
      output: with the request's last piece, all of it; else None.
    """

    request_id: str
    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
