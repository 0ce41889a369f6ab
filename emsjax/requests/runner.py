"""Checks requests and runs them on an engine, for `LLM` and all that is built on it."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.slots import Slots
from emsjax.engine.stream import decode_stream
from emsjax.errors import UserError
from emsjax.host.memory_error import naming_memory
from emsjax.requests.chat import ChatOptions
from emsjax.requests.outputs import Piece, RequestOutput
from emsjax.requests.prompts import Prompt
from emsjax.requests.reader import RequestReader
from emsjax.requests.request import Request
from emsjax.requests.samples import Sample, make_samples, request_output
from emsjax.requests.sampling_params import SamplingParams
from emsjax.requests.service import Service
from emsjax.requests.token_texts import TokenTexts, token_classes
from emsjax.sampling.adapt import can_indent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prices(Protocol):
    """Sets the costs by which an engine plans, as `costs.pricing.Pricing` does."""

    def before_run(
        self,
        requests: Iterable[Request | None],
        when_empty: Callable[[Callable[[], None]], None],
    ) -> Iterable[Request | None]:
        """Sets the costs for a run of these requests, and returns the same requests."""

    def before_service(self) -> None:
        """Sets the costs for a run without end."""


class RequestRunner:
    """Base class of `LLM`: requests in, pieces and results out."""

    def __init__(
        self,
        engine: Engine,
        reader: RequestReader,
        tokenizer: "PreTrainedTokenizerBase | None",
        name: str,
        *,
        max_batch_size: int,
        share_prefixes: bool,
        prices: Prices | None,
    ):
        """Compiles and runs nothing yet.

        Args:
          engine: decodes.
          reader: checks requests.
          tokenizer: the model's tokenizer; None if it has none.
          name: the model's name.
          max_batch_size: the most samples decoded together.
          share_prefixes: whether prompts share what the cache holds.
          prices: of the engine's steps; None if it plans without.
        """
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.max_batch_size = max_batch_size
        self._reader, self._share_prefixes, self._prices = reader, share_prefixes, prices
        self._token_text = TokenTexts(tokenizer)

    def tokenize(self, prompt: Prompt, chat: ChatOptions | None = None) -> tuple[int, ...]:
        """Returns the token ids of a prompt, of any length.

        Args:
          prompt: as for `request`.
          chat: how a conversation is rendered.

        Raises:
          UserError: the prompt is malformed, or the tokenizer or chat template does not take it.
        """
        return self._reader.tokenise(prompt, chat)[1]

    def compile_grammar(self, params: SamplingParams) -> None:
        """Compiles the structured outputs of some parameters, which `request` would do otherwise.

        A new schema takes a moment, during which other threads may read requests.

        Raises:
          UserError: they cannot be compiled.
        """
        self._reader.grammar(params)

    def service(self, *, most_waiting: int | None = None) -> Service:
        """Starts a thread that decodes requests which other threads submit.

        The step costs are measured first, unless they are known. While the service runs, it owns
        the slots: other calls that generate would need memory for as many more.

        Args:
          most_waiting: the most outputs that may wait for a slot; None for no limit.
        """
        prepare = None if self._prices is None else self._prices.before_service
        slots = self._slots(most_waiting=most_waiting)
        return Service(slots, self.tokenizer, self._token_text, prepare)

    def _slots(
        self,
        on_progress: Callable[[int], None] | None = None,
        most_waiting: int | None = None,
    ) -> Slots:
        return Slots(
            self.engine,
            on_progress,
            most_waiting=most_waiting,
            most_running=self.max_batch_size,
            share_prefixes=self._share_prefixes,
        )

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        chat: ChatOptions | None = None,
    ) -> Request:
        """Tokenises and checks one prompt.

        Args:
          prompt: text, token ids, or the messages of a conversation.
          params: how to decode it.
          request_id: returned with the result. If `params` has no seed, the request derives one
            from this and the seed of the `LLM`.
          chat: how a conversation is rendered.

        Raises:
          UserError: the prompt is empty, too long or outside the vocabulary, the prompt or its
            parameters need a tokenizer and the model has none, or the parameters do not fit the
            model.
        """
        request = self._reader.read(prompt, params, request_id, chat)
        if params.adapt_temperature is not None:
            self._classify_tokens()
        return request

    def _classify_tokens(self) -> None:
        """Tells the engine, once, which tokens are blanks and line breaks.

        Raises:
          UserError: no text of these tokens has an indented line.
        """
        # Only `adapt_temperature` needs this, and decoding the whole vocabulary takes a while.
        known = self.engine.token_classes
        if self.tokenizer is not None and not known.any():
            self.engine.use_token_classes(token_classes(self.tokenizer, len(known)))
        if not can_indent(self.engine.token_classes):
            raise UserError(
                f"adapt_temperature has no effect with {self.name}, whose tokens hold no line "
                "break followed by blanks; leave it out"
            )

    def run(
        self,
        requests: Iterable[Request | None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[RequestOutput]:
        """Generates for a stream of requests, in constant memory.

        Args:
          requests: taken one by one as slots become free, and some ahead of that, to see whether
            the run is long and whether requests are waiting. A request of None means that the next
            one is not ready yet: the engine continues with the requests that it has, which it
            cannot do while it waits for the iterator. If taking a request raises an error, the
            requests before it are finished first.
          on_progress: called with the number of tokens generated since the last call.

        Yields:
          Each result when it is final, in the order in which the requests finish.

        Raises:
          UserError: the device ran out of memory.
        """
        for sample in self._finished(requests, on_progress):
            if sample is not None and sample.is_last:
                yield request_output(sample.siblings, self._token_text)

    def run_streaming(
        self,
        requests: Iterable[Request | None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[Piece]:
        """Generates like `run`, yielding each piece of text as soon as it is final.

        Args:
          requests: as for `run`.
          on_progress: as for `run`.

        Yields:
          Pieces of all outputs as they are generated. The last piece of a request has its result.

        Raises:
          UserError: the device ran out of memory.
        """
        live: dict[Sample, None] = {}
        for sample in self._finished(requests, on_progress, streamed=live):
            if sample is None:
                yield from (each.piece(self._token_text) for each in live if each.waiting)
                continue
            del live[sample]
            last = request_output(sample.siblings, self._token_text) if sample.is_last else None
            yield sample.piece(self._token_text, last)

    def _finished(
        self,
        requests: Iterable[Request | None],
        on_progress: Callable[[int], None] | None,
        streamed: dict[Sample, None] | None = None,
    ) -> Iterator[Sample | None]:
        """Yields samples when they finish, and None whenever unfinished ones have new tokens.

        Args:
          requests: as for `run`.
          on_progress: as for `run`.
          streamed: gets the samples that have started, whose tokens are watched then; None to watch
            none.
        """
        asked = f"with {self.engine.num_slots} samples of {self.engine.capacity} tokens"
        with naming_memory(asked, "lower max_batch_size or max_model_len"):
            slots = self._slots(on_progress)
            if self._prices is not None:
                requests = self._prices.before_run(requests, slots.when_empty)
            for finished in decode_stream(slots, self._jobs(requests, streamed)):
                if finished is None:
                    yield None
                    continue
                sample: Sample = finished.job.key  # type: ignore[assignment]
                sample.finish(finished)
                yield sample

    def _jobs(
        self, requests: Iterable[Request | None], streamed: dict[Sample, None] | None
    ) -> Iterator[Job | None]:
        number = 0
        for request in requests:
            if request is None:
                yield None
                continue
            for sample in make_samples(request, self.tokenizer, streamed is not None, number):
                if streamed is not None:
                    streamed[sample] = None
                yield sample.job()
            number += 1
