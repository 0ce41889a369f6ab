"""All replicas of a command: one queue of prompts for them, one stream of results from them."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol, Self

from emsjax.cli.words import count
from emsjax.errors import UserError
from emsjax.generate.replicas.devices import cores_of, environment_of
from emsjax.generate.replicas.messages import Compiling, Failed, Ready, Refused, Setup, Task, Tokens
from emsjax.generate.replicas.process import Gone, Relay, Replica
from emsjax.generate.replicas.tasks import Tasks
from emsjax.host.patience import patience_s
from emsjax.requests.outputs import RequestOutput
from emsjax.requests.prompt_line import Prompt
from emsjax.requests.sampling_params import SamplingParams

# How often replicas are looked after while none says anything, as a share of the patience.
_LOOKS = 10
_PATIENCE_S = 5.0  # for all replicas to end in order
Result = RequestOutput | Refused


class Watch(Protocol):
    """Hears what happens to the replicas."""

    def compiling(self, program: str) -> None:
        """A program takes long to compile, in at least one replica."""

    def lost(self, sentence: str) -> None:
        """A replica has ended before its time; the others go on."""


class Replicas:
    """Processes that together do what `LLM.run` does; used as a context manager.

    Prompts are tokenised and checked by the replicas, so that a prompt that does not fit the model
    comes back as a `Refused`.

    Attributes:
      name: the model's name.
      tokenizer: says only whether the model has a `chat_template`.
    """

    def __init__(self, number: int, engine: Mapping[str, Any], watch: Watch):
        """Starts the replicas, and waits until each has loaded the model or has ended.

        Args:
          number: how many.
          engine: the arguments for `emsjax.llm.LLM`.
          watch: hears what happens to them.

        Raises:
          UserError: a replica cannot load the model, all of them end, or there are fewer devices
            than replicas.
        """
        self._number, self._watch = number, watch
        # The devices that share a replica's model.
        self._each: int = engine.get("tensor_parallel_size", 1)
        self._news: SimpleQueue[tuple[Replica, Any]] = SimpleQueue()
        self._replicas: list[Replica] = []
        self._tasks = Tasks()
        self._failures: dict[Replica, str] = {}
        self._patience = patience_s()
        self._looked = time.monotonic()
        try:
            self._start(engine)
            ready = self._all_ready()
        except BaseException:
            self._close(0.0)
            raise
        self.name = ready.name
        self.tokenizer = SimpleNamespace(chat_template=ready.chat_template or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            for replica in self._replicas:
                replica.finish()
        self._close(0.0 if kind else _PATIENCE_S)

    def request(self, prompt: Prompt, params: SamplingParams, request_id: str) -> Task:
        """Makes a request; see `LLM.request`. Whether it fits the model, a replica checks."""
        return Task(request_id, prompt, params)

    def run(
        self,
        requests: Iterable[Task | None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[Result]:
        """Generates for a stream of requests; see `LLM.run`.

        Raises:
          UserError: all replicas have ended.
        """
        emitted = on_progress or (lambda _tokens: None)
        tasks = self._tasks = Tasks(requests)
        while True:
            while (replica := self._idlest()) is not None and (task := tasks.next()) is not None:
                replica.give(task)
            if tasks.ended and not any(replica.open for replica in self._replicas):
                break
            # While the next task is still to arrive, `tasks.next` is what waits.
            for replica, message in self._messages(wait=not tasks.arriving):
                if isinstance(message, Tokens):
                    emitted(message.count)
                elif isinstance(message, RequestOutput | Refused):
                    del replica.open[message.request_id]
                    yield message
                else:
                    self._take(replica, message)
        if tasks.failure is not None:
            raise tasks.failure

    def _start(self, engine: Mapping[str, Any]) -> None:
        given, relay = os.environ, Relay()
        # All of these first: a wrong number is found before any process starts.
        places = range(self._number)
        shown = [environment_of(place, self._number, given, self._each) for place in places]
        for place, environment in enumerate(shown):
            setup = Setup(engine, cores_of(place, self._number, given))
            try:
                replica = Replica(place + 1, setup, environment, self._news, relay)
            except OSError as error:
                raise UserError(
                    f"process {place + 1} of {self._number} cannot be started "
                    f"({error.strerror}); give a smaller number with data_parallel."
                ) from error
            self._replicas.append(replica)

    def _all_ready(self) -> Ready:
        """Waits until each replica has loaded the model or has ended; returns what the first says.

        Raises:
          UserError: a replica cannot load it, all have ended, or they run on different platforms.
        """
        while any(replica.ready is None for replica in self._replicas):
            for replica, message in self._messages(wait=True):
                if isinstance(message, Failed):
                    raise UserError(message.error)
                if isinstance(message, Ready):
                    replica.ready = message
                else:
                    self._take(replica, message)
        ready = [(each.number, each.ready) for each in self._replicas if each.ready is not None]
        _, first = ready[0]
        for number, other in ready:
            if other.platform != first.platform:
                needed = self._number * self._each
                raise UserError(
                    f"data_parallel={self._number} needs {needed} devices, but replica "
                    f"{number} found a {other.platform} where the first one found a "
                    f"{first.platform}; give as many as there are devices."
                )
        return first

    def _idlest(self) -> Replica | None:
        """The replica with the most room for tasks; None if none has room."""
        replica = max(self._replicas, key=lambda each: each.room)
        return replica if replica.room > 0 else None

    def _messages(self, wait: bool) -> Iterator[tuple[Replica, Any]]:
        """Yields all messages that have come; waits a while for the first of them if `wait`."""
        with suppress(Empty):
            news = [self._news.get(wait, self._patience / _LOOKS)]
            news += [self._news.get() for _ in range(self._news.qsize())]
            # One that was given up may still say something; others do its prompts now.
            yield from ((replica, said) for replica, said in news if replica in self._replicas)
        yield from self._silent()

    def _silent(self) -> Iterator[tuple[Replica, Gone]]:
        """Yields the replicas that have said nothing for too long."""
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > self._patience / 2:
            for replica in self._replicas:
                # This process may have been stopped itself, so that it has heard nothing.
                replica.heard = max(replica.heard, now)
        for replica in list(self._replicas):
            if now - replica.heard > self._patience:
                yield replica, Gone(f"has not answered for {self._patience:.0f} s")

    def _take(self, replica: Replica, message: object) -> None:
        """Takes any message that is not about a request."""
        if isinstance(message, Compiling):
            self._watch.compiling(message.program)
        elif isinstance(message, Failed):
            self._failures[replica] = message.error
        elif isinstance(message, Gone):
            self._lose(replica, message.why)

    def _lose(self, replica: Replica, why: str) -> None:
        """Takes back the tasks of a replica that has ended.

        Raises:
          UserError: it was the last one.
        """
        replica.end()
        self._replicas.remove(replica)
        self._tasks.put_back(replica.open.values())
        if replica in self._failures:
            why = f"stopped: {self._failures[replica].rstrip('.')}"
        sentence = f"replica {replica.number} of {self._number} {why}"
        if not self._replicas:
            raise UserError(
                f"{sentence}, and no other is left; what is written is whole, and the same command "
                "with --resume continues it."
            )
        unfinished = count(len(replica.open), "unfinished prompt")
        rest = f"the others do its {unfinished}" if replica.open else "the others go on"
        self._watch.lost(f"{sentence}; {rest}")

    def _close(self, patience_s: float) -> None:
        latest = time.monotonic() + patience_s
        for replica in self._replicas:
            replica.end(max(0.0, latest - time.monotonic()))
