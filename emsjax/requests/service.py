"""Requests from many threads, decoded by one."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emsjax.engine.job import Failed, Finished, Job
from emsjax.engine.slots import Slots
from emsjax.requests.outputs import Piece
from emsjax.requests.request import Request
from emsjax.requests.samples import Sample, TokenText, make_samples, request_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Receives the pieces of a ticket's requests, or the error with which one of them ends.
Listener = Callable[[Piece | Exception], None]


class ServiceClosedError(Exception):
    """The service has ended, so that no request can be decoded."""


@dataclass(eq=False)
class Ticket:
    """Requests that were submitted together.

    Attributes:
      jobs: the jobs of all their outputs.
      listen: called, in the thread of the service, with all that comes of them.
    """

    jobs: list[Job]
    listen: Listener


class Service:
    """Decodes requests in a thread of its own, which sleeps while there are none.

    `submit`, `cancel` and `close` may be called from any thread.
    """

    def __init__(
        self,
        slots: Slots,
        tokenizer: "PreTrainedTokenizerBase | None",
        token_text: TokenText,
        prepare: Callable[[], None] | None = None,
    ):
        """Starts the thread.

        Args:
          slots: free slots, which belong to the service from now on.
          tokenizer: the model's tokenizer; None if it has none.
          token_text: the text of a token decoded alone.
          prepare: called in the thread before the first request.
        """
        self._slots, self._tokenizer, self._token_text = slots, tokenizer, token_text
        self._prepare = prepare or (lambda: None)
        # The samples of streamed requests that may have new tokens, and the tickets of all samples.
        self._streamed: dict[Sample, None] = {}
        self._tickets: dict[Sample, Ticket] = {}
        self._lock = threading.Lock()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="emsjax-service", daemon=True)
        self._thread.start()

    @property
    def slots(self) -> Slots:
        """The slots, to ask how many jobs run and wait."""
        return self._slots

    @property
    def alive(self) -> bool:
        """Whether the service still decodes."""
        return self._thread.is_alive() and self.failure is None

    def submit(
        self,
        requests: Sequence[Request],
        listen: Listener,
        *,
        streaming: bool = False,
        priority: int = 0,
    ) -> Ticket:
        """Submits requests, all of them or none.

        Args:
          requests: decoded together as far as there are slots.
          listen: called with the pieces of all outputs, `prompt_index` being the request's place in
            `requests`. A request that fails ends with an exception instead. Must not block.
          streaming: whether pieces come as soon as they are final, rather than whole outputs.
          priority: requests with a lower number get slots first.

        Raises:
          emsjax.engine.waiting.LineFullError: too many requests wait.
          emsjax.requests.service.ServiceClosedError: the service has ended.
        """
        samples = [
            sample
            for place, request in enumerate(requests)
            for sample in make_samples(request, self._tokenizer, streaming, place)
        ]
        ticket = Ticket([sample.job() for sample in samples], listen)
        with self._lock:
            if not self.alive:
                raise ServiceClosedError("the server is shutting down; try again later")
            self._slots.submit(ticket.jobs, priority)
            self._tickets.update(dict.fromkeys(samples, ticket))
            if streaming:
                self._streamed.update(dict.fromkeys(samples))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends requests that nobody waits for; their listener is not called any more."""
        with self._lock:
            for job in ticket.jobs:
                self._drop(_sample_of(job))
        self._slots.cancel(ticket.jobs)

    def close(self) -> None:
        """Ends the thread after the step that it is in; all open requests end with an error."""
        self._slots.close()
        self._thread.join()

    def _drop(self, sample: Sample) -> Ticket | None:
        self._streamed.pop(sample, None)
        return self._tickets.pop(sample, None)

    def _run(self) -> None:
        try:
            self._prepare()
            while self._slots.wait():
                ended, watched = self._slots.step(more=True)
                for result in ended:
                    self._end(result)
                if watched:
                    self._pass_on()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._slots.close()
            self._end_all(self.failure)

    def _pass_on(self) -> None:
        """Passes on the new text of all streamed outputs."""
        with self._lock:
            news = [(self._tickets[each], each) for each in self._streamed if each.waiting]
        for ticket, sample in news:
            ticket.listen(sample.piece(self._token_text))

    def _end(self, result: Finished | Failed) -> None:
        sample = _sample_of(result.job)
        try:
            if isinstance(result, Failed):
                raise result.error
            sample.finish(result)
            last = request_output(sample.siblings, self._token_text) if sample.is_last else None
            message: Piece | Exception = sample.piece(self._token_text, last)
        except Exception as error:  # this request's alone
            message = error
        with self._lock:
            ticket = self._drop(sample)
        if ticket is not None:
            ticket.listen(message)

    def _end_all(self, failure: BaseException | None) -> None:
        error = ServiceClosedError("the server is shutting down; try again later")
        error.__cause__ = failure
        with self._lock:
            tickets = dict.fromkeys(self._tickets.values())
            self._tickets.clear()
            self._streamed.clear()
        for ticket in tickets:
            ticket.listen(error)


def _sample_of(job: Job) -> Sample:
    sample: Sample = job.key  # type: ignore[assignment]
    return sample
