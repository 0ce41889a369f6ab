"""The model behind the routes: reads requests, decodes them, and passes their pieces on."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from emsjax.engine.waiting import LineFullError
from emsjax.errors import UserError
from emsjax.llm import LLM
from emsjax.loading.hf.tokenizer import decode
from emsjax.requests.called_tools import BEGIN
from emsjax.requests.outputs import Piece
from emsjax.requests.prompts import Prompt
from emsjax.requests.request import Request
from emsjax.requests.service import ServiceClosedError, Ticket
from emsjax.serve.body import TRACE, Asked
from emsjax.serve.metrics import Metrics
from emsjax.serve.options import Settings

_Value = TypeVar("_Value")


class Backend:
    """A model, and the thread that decodes with it."""

    def __init__(self, llm: LLM, settings: Settings):
        """Starts the thread."""
        self.llm, self.settings = llm, settings
        self.name = settings.name or llm.name
        self.service = llm.service(most_waiting=settings.most_waiting)
        slots = self.service.slots
        self.metrics = Metrics(self.name, lambda: slots.running, lambda: slots.waiting)
        # Tokenizers are not made for several threads, and must not hold up the event loop.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="emsjax-reader")
        # A schema may take seconds to compile, in which others are read.
        self._compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="emsjax-grammars")

    def close(self) -> None:
        """Ends the thread; open requests end with an error."""
        for executor in (self._compiler, self._reader):
            executor.shutdown(cancel_futures=True)
        self.service.close()

    async def off_loop(self, work: Callable[[], _Value]) -> _Value:
        """Runs what uses the tokenizer, without holding up other clients.

        Raises:
          ServiceClosedError: the server is shutting down.
        """
        return await self._run(self._reader, work)

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], _Value]) -> _Value:
        try:
            done = asyncio.get_running_loop().run_in_executor(executor, work)
        except RuntimeError:
            raise ServiceClosedError("the server is shutting down; try again later") from None
        return await done

    async def start(self, asked: Asked, request_id: str) -> "Call":
        """Submits what a body asks for.

        Raises:
          UserError: a prompt or the parameters do not fit the model, traces are asked for but not
            recorded, or a call is asked for of a model that has no form for it.
          LineFullError: too many requests wait.
          ServiceClosedError: the server is shutting down.
        """
        arrived = time.perf_counter()
        if asked.trace and not self.traces:
            raise UserError(f"{TRACE} needs recorded traces; start the server without --no-page")
        if asked.tools.must is not None and not self.writes_calls:
            raise UserError(
                f"tool_choice asks for a call, for which the chat template of {self.llm.name} has "
                f"no tags {BEGIN}; set tool_choice to auto or none"
            )

        outputs, most = len(asked.prompts) * asked.params.n, self.settings.most_waiting
        if outputs > most:  # before anything is made of them
            raise LineFullError(
                f"the request asks for {outputs} at a time of the at most {most} outputs that may "
                "wait for a slot; ask for fewer"
            )

        def read() -> list[Request]:
            return [
                self._request(prompt, asked, f"{request_id}-{place}")
                for place, prompt in enumerate(asked.prompts)
            ]

        if asked.params.structured_outputs is not None:
            await self._run(self._compiler, lambda: self.llm.compile_grammar(asked.params))
        return Call(self, asked, await self.off_loop(read), arrived)

    def _request(self, prompt: Prompt, asked: Asked, request_id: str) -> Request:
        request = self.llm.request(prompt, asked.params, request_id, asked.chat)
        return replace(request, traced=asked.trace)

    @property
    def traces(self) -> bool:
        """Whether the model records where tokens come from, which the page shows."""
        return self.llm.engine.trace

    @property
    def writes_calls(self) -> bool:
        """Whether the chat template tells the model to write calls of tools between tags."""
        return BEGIN in str(getattr(self.llm.tokenizer, "chat_template", None))

    def prompt_text(self, request: Request) -> str:
        """Returns the text of a prompt, however it was given."""
        if request.prompt is not None:
            return request.prompt
        return decode(self.llm.get_tokenizer(), request.prompt_token_ids)

    def first_text(self, request: Request) -> str:
        """Returns the text of a prompt's first token."""
        return decode(self.llm.get_tokenizer(), request.prompt_token_ids[:1])


def new_id(kind: str) -> str:
    """Returns a new id of an answer, such as "cmpl-…"."""
    return f"{kind}-{uuid.uuid4().hex}"


class Call:
    """The requests of one body while they are decoded.

    Attributes:
      requests: the requests, in the order of the prompts.
    """

    def __init__(self, backend: Backend, asked: Asked, requests: Sequence[Request], arrived: float):
        """Submits the requests; must be called in the event loop, as all methods."""
        self.requests = requests
        self._backend, self._arrived = backend, arrived
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + backend.settings.time_limit
        self._news: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._open = len(requests)
        self._begun: set[tuple[int, int]] = set()
        self._streaming = asked.stream
        self._ticket: Ticket = backend.service.submit(
            requests, self._listen, streaming=asked.stream, priority=asked.priority
        )

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yields the pieces of all outputs; giving up frees their slots.

        Raises:
          TimeoutError: the request has taken longer than the server allows.
          Exception: the model failed on one of the requests.
        """
        try:
            while self._open:
                piece = await self._next()
                self._count(piece)
                yield piece
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Ends what is not finished."""
        if self._open:
            self._backend.service.cancel(self._ticket)
            self._backend.metrics.aborted(self._open)
            self._open = 0

    async def _next(self) -> Piece:
        try:
            async with asyncio.timeout_at(self._deadline):
                piece = await self._news.get()
        except TimeoutError:
            limit = self._backend.settings.time_limit
            raise TimeoutError(
                f"the request took longer than {limit:g} s; ask for fewer tokens"
            ) from None
        if isinstance(piece, Exception):
            raise piece
        return piece

    def _count(self, piece: Piece) -> None:
        seconds = time.perf_counter() - self._arrived
        place = piece.prompt_index, piece.index
        if self._streaming and piece.token_ids and place not in self._begun:
            self._begun.add(place)
            self._backend.metrics.first_token(seconds)
        if piece.output is not None:
            self._open -= 1
            self._backend.metrics.finished(piece.output, seconds)

    def _listen(self, message: Piece | Exception) -> None:
        """Called in the thread of the service."""
        try:
            self._loop.call_soon_threadsafe(self._news.put_nowait, message)
        except RuntimeError:  # the event loop is closed, so nobody waits
            return
