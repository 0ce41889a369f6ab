"""The results of requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emsjax.engine.metrics import RequestMetrics
from emsjax.engine.trace import Trace

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Logprob:
    """The log-probability of one token.

    Attributes:
      logprob: natural logarithm of its probability, before bias, penalties and temperature.
      rank: its rank among all tokens, 1 for the likeliest.
      decoded_token: its text; None if the model has no tokenizer, or if that cannot decode it.
    """

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(frozen=True)
class CompletionOutput:
    """One generated continuation.

    Attributes:
      index: its position among the request's outputs, from 0.
      text: the decoded tokens, without a stop token and cut before a stop string, unless
        `include_stop_str_in_output` is set; None if the model has no tokenizer, or if `detokenize`
        is false.
      token_ids: the generated tokens, without the prompt's, up to the token that ended it.
      finish_reason: "stop" at end of text, a stop token or a stop string; "length" at `max_tokens`
        or at the end of the model's context; "error" if the model or its tokenizer
        failed, see `error`.
      stop_reason: the stop string, or the id in `stop_token_ids`, that ended it; None for any other
        end.
      logprobs: for each token a mapping by token id, with the token itself first, then the
        likeliest ones; None if not requested.
      trace: the origin of each token; None unless the `LLM` was made with `trace=True`.
      error: one sentence that says why the output ends before its time; `text` holds what came
        before. None if nothing failed.
    """

    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: Sequence[Mapping[int, Logprob]] | None = None
    trace: Trace | None = None
    error: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum of the tokens' log-probabilities; None if they were not requested."""
        if self.logprobs is None:
            return None
        tokens = zip(self.token_ids, self.logprobs, strict=True)
        return sum(table[token].logprob for token, table in tokens)

    def finished(self) -> bool:
        """Whether the output is complete, which it always is; a method, as in vLLM."""
        return True


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    Attributes:
      request_id: the id given to the request.
      prompt: the text that was tokenised (for messages, as the chat template rendered them);
        None if the prompt was given as token ids.
      prompt_token_ids: the prompt's tokens.
      outputs: the `n` continuations.
      metrics: the cost of the request, summed over its outputs.
      prompt_logprobs: for each token of the prompt a mapping as in `CompletionOutput.logprobs`,
        None for the first; None if not requested.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: Sequence[Mapping[int, Logprob] | None] | None = None

    @property
    def finished(self) -> bool:
        """Whether all outputs are complete, which they always are."""
        return True

    @property
    def error(self) -> str | None:
        """The error of the first output that failed; None if none did."""
        return next((each.error for each in self.outputs if each.error is not None), None)


@dataclass(frozen=True)
class Piece:
    """The next part of an output while it is being generated.

    Attributes:
      request_id: the id of its request.
      index: the position of its output among the request's outputs, from 0.
      text: text that is final: no later token changes it, and no stop string can begin in it. It
        may be empty. None if the model has no tokenizer, or if `detokenize` is false.
      token_ids: the tokens since the last piece, which may be ahead of the text.
      finish_reason: how the output ended, in its last piece; None in all others.
      output: the whole result, in the last piece of the request; None in all others.
      prompt_index: the position of its prompt in the call, from 0; in `LLM.run_streaming`, the
        number of requests taken before its own.
      logprobs: as in `CompletionOutput`, for `token_ids`.
    """

    request_id: str
    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
    prompt_index: int = 0
    logprobs: Sequence[Mapping[int, Logprob]] | None = None
