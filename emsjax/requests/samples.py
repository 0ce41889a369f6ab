"""The outputs of a request, from the engine's tokens to the user's text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from emsjax.engine.job import NOT_NUMBERS, Finished, Job
from emsjax.engine.metrics import together
from emsjax.engine.trace import Trace
from emsjax.errors import UserError
from emsjax.requests.detokenizer import Detokenizer, text_pieces
from emsjax.requests.outputs import CompletionOutput, FinishReason, Logprob, Piece, RequestOutput
from emsjax.requests.request import Request
from emsjax.requests.transcript import Transcript
from emsjax.sampling.logprobs import Logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenText = Callable[[int], str | None]


@dataclass(eq=False)
class Sample:
    """One output of a request while it is generated.

    Attributes:
      request: the request.
      index: its position among the request's outputs, from 0.
      transcript: its text.
      streamed: whether its pieces are passed on while it is generated.
      waiting: the tokens that were not passed on yet.
      waiting_logprobs: their log-probabilities, as the engine gave them.
      finished: the engine's result; None until then.
      siblings: all outputs of the request in order, including this one.
      tokenizer: the model's tokenizer; None if it has none.
      prompt_index: the position of its prompt among those of the run, from 0.
    """

    request: Request
    index: int
    transcript: Transcript
    streamed: bool
    waiting: list[int] = field(default_factory=list)
    waiting_logprobs: list[Logprobs] = field(default_factory=list)
    finished: Finished | None = None
    siblings: list["Sample"] = field(default_factory=list)
    tokenizer: "PreTrainedTokenizerBase | None" = None
    prompt_index: int = 0

    @property
    def is_last(self) -> bool:
        """Whether the request's other outputs are finished too."""
        return all(sample.finished is not None for sample in self.siblings)

    def job(self) -> Job:
        """Returns the engine's job for this output."""
        request = self.request
        watched = self.streamed or request.params.stop
        return Job(
            key=self,
            prompt=request.prompt_token_ids,
            max_tokens=request.max_tokens,
            stop_ids=request.stop_ids,
            choice=request.choice(self.index),
            group=request if request.params.n > 1 else None,
            watch=self._watch if watched else None,
            watch_logprobs=self.waiting_logprobs.append if self._streams_logprobs else None,
            grammar=request.grammar,
            # The outputs of a request have one prompt.
            scores_prompt=request.params.prompt_logprobs is not None and self.index == 0,
            traced=request.traced,
        )

    @property
    def _streams_logprobs(self) -> bool:
        return self.streamed and self.request.params.logprobs is not None

    def _watch(self, tokens: Sequence[int]) -> int | None:
        kept = self.transcript.feed(tokens)
        self.waiting.extend(tokens[:kept])
        return kept

    def finish(self, finished: Finished) -> None:
        """Takes the engine's result."""
        if finished.job.watch is None:
            self.transcript.feed_all(finished.token_ids)
        self.transcript.finish()
        self.finished = finished

    def piece(self, token_text: TokenText, output: RequestOutput | None = None) -> Piece:
        """Returns the part of the output that was not passed on yet.

        Args:
          token_text: the text of a token decoded alone.
          output: the result of the request, for its last piece.
        """
        tokens, self.waiting = tuple(self.waiting), []
        return Piece(
            self.request.request_id,
            self.index,
            self.transcript.take() if self.request.has_text else None,
            tokens,
            None if self.finished is None else self._finish_reason(self.finished),
            output,
            self.prompt_index,
            self._take_logprobs(tokens, token_text) if self._streams_logprobs else None,
        )

    def _take_logprobs(
        self, tokens: Sequence[int], token_text: TokenText
    ) -> list[Mapping[int, Logprob]]:
        parts = list(self.waiting_logprobs)
        self.waiting_logprobs.clear()
        if not parts:
            return []
        found = Logprobs(*map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[arg-type]
        params = self.request.params
        return _tables(tokens, found, params.logprobs or 0, self.text_of(token_text))

    def text_of(self, token_text: TokenText) -> TokenText:
        """Returns the function that decodes tokens for tables; nothing without `detokenize`."""
        return token_text if self.request.params.detokenize else _no_text

    def completion(self, token_text: TokenText) -> CompletionOutput:
        """Returns the result; the output must be finished."""
        assert self.finished is not None
        finished, params = self.finished, self.request.params
        last = finished.token_ids[-1] if finished.stopped else None
        by_token = last is not None and last in (params.stop_token_ids or ())
        return CompletionOutput(
            index=self.index,
            text=self.transcript.text if self.request.has_text else None,
            token_ids=finished.token_ids,
            finish_reason=self._finish_reason(finished),
            stop_reason=last if by_token else self.transcript.stop,
            logprobs=_logprobs(finished, params.logprobs, self.text_of(token_text)),
            trace=self._trace(finished, token_text),
            error=self._error(finished),
        )

    def _finish_reason(self, finished: Finished) -> FinishReason:
        if finished.failed or self.transcript.error is not None:
            return "error"
        return "stop" if finished.stopped or finished.cut else "length"

    def _error(self, finished: Finished) -> str | None:
        if not finished.failed:
            return self.transcript.error
        count = len(finished.token_ids)
        done = f"{count} token{'' if count == 1 else 's'}"
        which = f" of output {self.index + 1}" if self.request.params.n > 1 else ""
        remedy = "check its weights, or load it with dtype float32"
        if self.request.bans_by_text:
            remedy += ", or ban less: the request's own bans may leave no token"
        return f"{NOT_NUMBERS} after {done}{which}; {remedy}"

    def _trace(self, finished: Finished, token_text: TokenText) -> Trace | None:
        """The engine's trace, completed with the texts of its tokens."""
        trace, request, tokens = finished.trace, self.request, finished.token_ids
        if trace is None or self.tokenizer is None:
            return trace
        drafted = {token for step in trace.steps for token in step.drafted}
        skip = request.params.skip_special_tokens
        try:
            pieces = text_pieces(
                self.tokenizer, request.prompt_token_ids, tokens, request.stop_ids, skip
            )
        except UserError:  # `error` says so, unless no text was asked for
            return trace
        return replace(
            trace,
            pieces=pieces,
            token_texts={token: token_text(token) or "" for token in {*tokens, *drafted}},
        )


def make_samples(
    request: Request,
    tokenizer: "PreTrainedTokenizerBase | None",
    streamed: bool,
    prompt_index: int = 0,
) -> list[Sample]:
    """Makes the `n` outputs of a request.

    Args:
      request: the request.
      tokenizer: the model's tokenizer; None if it has none.
      streamed: whether pieces are passed on while they are generated.
      prompt_index: the position of the prompt among those of the run, from 0.
    """
    params, prompt = request.params, request.prompt_token_ids

    def detokenizer() -> Detokenizer | None:
        if tokenizer is None or not request.has_text:
            return None
        return Detokenizer(tokenizer, prompt, params.skip_special_tokens)

    def transcript() -> Transcript:
        return Transcript(
            detokenizer(),
            stop=params.stop or (),
            stop_ids=request.stop_ids,
            min_tokens=params.min_tokens or 0,
            include_stop=params.include_stop_str_in_output,
        )

    siblings: list[Sample] = []
    for index in range(params.n):
        siblings.append(
            Sample(
                request,
                index,
                transcript(),
                streamed,
                siblings=siblings,
                tokenizer=tokenizer,
                prompt_index=prompt_index,
            )
        )
    return siblings


def request_output(samples: Sequence[Sample], token_text: TokenText) -> RequestOutput:
    """Makes the result of a request from its outputs, which must all be finished."""
    request = samples[0].request
    done = [sample.finished.metrics for sample in samples if sample.finished is not None]
    return RequestOutput(
        request.request_id,
        request.prompt,
        request.prompt_token_ids,
        [sample.completion(token_text) for sample in samples],
        together(done),
        _prompt_logprobs(samples[0], token_text),
    )


def _no_text(_token: int) -> None:
    """The text of a token where nothing is decoded."""


def _logprobs(
    finished: Finished, count: int | None, token_text: TokenText
) -> list[Mapping[int, Logprob]] | None:
    if finished.logprobs is None or count is None:
        return None
    return _tables(finished.token_ids, finished.logprobs, count, token_text)


def _prompt_logprobs(
    first: Sample, token_text: TokenText
) -> list[Mapping[int, Logprob] | None] | None:
    found = None if first.finished is None else first.finished.prompt_logprobs
    if found is None:
        return None
    count, tokens = first.request.params.prompt_logprobs or 0, first.request.prompt_token_ids[1:]
    return [None, *_tables(tokens, found, count, first.text_of(token_text))]


def _tables(
    tokens: Sequence[int], found: Logprobs, count: int, token_text: TokenText
) -> list[Mapping[int, Logprob]]:
    """Returns the table of each token, given the arrays of all."""
    return [
        _of_token(token, Logprobs(*(x[place] for x in found)), count, token_text)
        for place, token in enumerate(tokens)
    ]


def _of_token(
    token: int, found: Logprobs, count: int, token_text: TokenText
) -> Mapping[int, Logprob]:
    """The chosen token and the `count` likeliest ones, without impossible ones."""
    likeliest = zip(found.top_ids[:count].tolist(), found.top[:count].tolist(), strict=True)
    table = {token: Logprob(float(found.chosen), int(found.rank), token_text(token))}
    for rank, (other, logprob) in enumerate(likeliest, start=1):
        if logprob > float("-inf"):
            table.setdefault(other, Logprob(logprob, rank, token_text(other)))
    return table
