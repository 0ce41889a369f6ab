"""The answers of `/v1/completions` and `/v1/chat/completions`, whole or as a stream of chunks."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from emsjax.host.json_text import to_json
from emsjax.requests.outputs import CompletionOutput, Piece, RequestOutput
from emsjax.requests.request import Request
from emsjax.serve import logprobs
from emsjax.serve.backend import Backend, Call, new_id
from emsjax.serve.body import TRACE, Asked
from emsjax.serve.errors import ApiError, api_error
from emsjax.serve.tool_calls import ToolText
from emsjax.serve.traces import trace_of

Record = dict[str, Any]


class Answer(ABC):
    """The answer to one body.

    Attributes:
      kind: the `object` of a whole answer.
      chunk_kind: the `object` of a chunk.
      prefix: of the answer's id.
    """

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, backend: Backend, asked: Asked):
        """Prepares an answer with a new id."""
        self._backend, self._asked = backend, asked
        self.id, self._created = new_id(self.prefix), int(time.time())

    async def whole(self, call: Call) -> Record:
        """Returns the whole answer once all outputs are finished.

        Raises:
          Exception: one of the outputs failed, see `errors.api_error`.
        """
        outputs: dict[int, RequestOutput] = {}
        async with aclosing(call.pieces()) as pieces:
            async for piece in pieces:
                if piece.output is not None:
                    outputs[piece.prompt_index] = piece.output
        await self._prepare(call)
        choices = [
            self._choice(self._index(place, each.index), place, each, outputs[place])
            | self._trace(each)
            for place in range(len(call.requests))
            for each in outputs[place].outputs
        ]
        written = (
            0
            if self._asked.only_echo
            else sum(len(each.token_ids) for output in outputs.values() for each in output.outputs)
        )
        usage = _usage(call.requests, written)
        record = {**self._head(self.kind), "choices": choices, "usage": usage}
        return {**record, **self._about_prompt(outputs[0])}

    async def events(self, call: Call) -> AsyncIterator[bytes]:
        """Yields the answer as server-sent events; an error is the last one before the end."""
        written = 0
        try:
            await self._prepare(call)
            for place in range(len(call.requests)):
                for index in range(self._asked.params.n):
                    for choice in self._opening(self._index(place, index), place):
                        yield self._chunk([choice])
            async with aclosing(call.pieces()) as pieces:
                async for piece in pieces:
                    written += 0 if self._asked.only_echo else len(piece.token_ids)
                    _check(piece)
                    if piece.text or piece.token_ids or piece.finish_reason:
                        index = self._index(piece.prompt_index, piece.index)
                        yield self._chunk([self._part(index, piece)])
                    if self._asked.trace and piece.output is not None:
                        yield self._chunk(self._traces(piece, piece.output))
            if self._asked.include_usage:
                yield self._chunk([], _usage(call.requests, written))
        except Exception as error:
            yield _event(api_error(error).body())
        finally:
            call.give_up()
        yield b"data: [DONE]\n\n"

    @abstractmethod
    def _choice(
        self, index: int, place: int, output: CompletionOutput, whole: RequestOutput
    ) -> Record:
        """Returns a whole output as a choice; `whole` is the result of its request."""

    def _about_prompt(self, whole: RequestOutput) -> Record:
        """Returns what an answer says about a single prompt; the default is nothing."""
        del whole
        return {}

    @abstractmethod
    def _part(self, index: int, piece: Piece) -> Record:
        """Returns a piece of an output as a choice of a chunk."""

    def _traces(self, last: Piece, whole: RequestOutput) -> list[Record]:
        """Returns the traces of a request's outputs as choices of a chunk that adds no text."""
        empty = replace(last, text="", token_ids=(), finish_reason=None, logprobs=None)
        return [
            self._part(self._index(last.prompt_index, each.index), empty) | self._trace(each)
            for each in whole.outputs
        ]

    def _trace(self, output: CompletionOutput) -> Record:
        return {TRACE: trace_of(output)} if self._asked.trace else {}

    def _opening(self, index: int, place: int) -> list[Record]:
        """Returns the choices of the chunks with which an output begins."""
        del index, place
        return []

    async def _prepare(self, call: Call) -> None:
        """Reads what choices need besides the outputs; the default is nothing."""
        del call

    def _index(self, place: int, index: int) -> int:
        return place * self._asked.params.n + index

    def _head(self, kind: str) -> Record:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._backend.name,
        }

    def _chunk(self, choices: list[Record], usage: Record | None = None) -> bytes:
        record = {**self._head(self.chunk_kind), "choices": choices}
        if self._asked.include_usage:
            record["usage"] = usage
        return _event(record)


class TextAnswer(Answer):
    """The answer of `/v1/completions`."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, backend: Backend, asked: Asked):
        """See `Answer`."""
        super().__init__(backend, asked)
        self._prompts: list[str] = []
        self._firsts: list[str] = []
        self._offsets: dict[int, int] = {}

    async def _prepare(self, call: Call) -> None:
        if self._asked.echo:
            read, first = self._backend.prompt_text, self._backend.first_text
            self._prompts, self._firsts = await self._backend.off_loop(
                lambda: (list(map(read, call.requests)), list(map(first, call.requests)))
            )

    def _opening(self, index: int, place: int) -> list[Record]:
        return [_text_choice(index, self._prompts[place])] if self._asked.echo else []

    def _choice(
        self, index: int, place: int, output: CompletionOutput, whole: RequestOutput
    ) -> Record:
        _check_output(output)
        asked, text = self._asked, output.text or ""
        tokens, ended = output.token_ids, output.finish_reason
        tables: Sequence[logprobs.Table | None] | None = output.logprobs
        if asked.only_echo:
            text, tokens, ended = "", (), "length"
            tables = () if tables is not None else None
        scored, first = whole.prompt_logprobs, ""
        if asked.echo:
            text, first = self._prompts[place] + text, self._firsts[place]
            if tables is not None and scored is not None:
                tokens, tables = (*whole.prompt_token_ids, *tokens), (*scored, *tables)
        choice = _text_choice(index, text, ended, stop_reason=output.stop_reason)
        if tables is not None:
            choice["logprobs"] = logprobs.of_completion(tokens, tables, 0, first)
        if scored is not None:
            choice["prompt_logprobs"] = logprobs.of_prompt(scored)
        return choice

    def _part(self, index: int, piece: Piece) -> Record:
        if self._asked.only_echo:
            return _text_choice(index, "", piece.finish_reason and "length")
        choice = _text_choice(index, piece.text or "", piece.finish_reason)
        if piece.logprobs is not None:
            start = self._offsets.get(index, 0)
            found = logprobs.of_completion(piece.token_ids, piece.logprobs, start)
            self._offsets[index] = start + sum(map(len, found["tokens"]))
            choice["logprobs"] = found
        return choice


class ChatAnswer(Answer):
    """The answer of `/v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, backend: Backend, asked: Asked):
        """See `Answer`."""
        super().__init__(backend, asked)
        self._calls_tools = asked.tools.reads and backend.writes_calls
        self._texts: dict[int, ToolText] = {}

    def _opening(self, index: int, place: int) -> list[Record]:
        del place
        return [_delta(index, {"role": "assistant", "content": ""})]

    def _about_prompt(self, whole: RequestOutput) -> Record:
        scored = whole.prompt_logprobs
        return {} if scored is None else {"prompt_logprobs": logprobs.of_prompt(scored)}

    def _choice(
        self, index: int, place: int, output: CompletionOutput, whole: RequestOutput
    ) -> Record:
        del place, whole
        _check_output(output)
        text, calls = self._read(index, output.text or "", True)
        message: Record = {"role": "assistant", "content": text}
        if calls:
            whole_calls = [{name: call[name] for name in call if name != "index"} for call in calls]
            message = {"role": "assistant", "content": text or None, "tool_calls": whole_calls}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(output.token_ids, output.logprobs),
            "finish_reason": self._finish_reason(index, output.finish_reason),
            "stop_reason": output.stop_reason,
        }

    def _part(self, index: int, piece: Piece) -> Record:
        ended = piece.finish_reason is not None
        text, calls = self._read(index, piece.text or "", ended)
        delta: Record = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = calls
        choice = _delta(index, delta, self._finish_reason(index, piece.finish_reason))
        choice["logprobs"] = self._logprobs(piece.token_ids, piece.logprobs)
        return choice

    def _read(self, index: int, text: str, last: bool) -> tuple[str, list[Record]]:
        """Returns the next piece of an output without calls of tools, and the calls."""
        if not self._calls_tools:
            return text, []
        if index not in self._texts:
            self._texts[index] = ToolText(self._asked.tools.several)
        return self._texts[index].feed(text, last)

    def _finish_reason(self, index: int, given: str | None) -> str | None:
        called = index in self._texts and self._texts[index].calls
        # As in the OpenAI API, a call that was asked for by name is nothing but the answer's end.
        called = called and not self._asked.tools.named
        return "tool_calls" if called and given == "stop" else given

    def _logprobs(
        self, tokens: Sequence[int], tables: Sequence[logprobs.Table] | None
    ) -> Record | None:
        if tables is None:
            return None
        return logprobs.of_chat(tokens, tables, self._asked.params.logprobs or 0)


def _text_choice(
    index: int, text: str, finish_reason: str | None = None, **more: int | str | None
) -> Record:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason, **more}


def _delta(index: int, delta: Record, finish_reason: str | None = None) -> Record:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _usage(requests: Sequence[Request], written: int) -> Record:
    read = sum(len(request.prompt_token_ids) for request in requests)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def _check(piece: Piece) -> None:
    """Raises the error of a request during which the model failed."""
    if piece.output is not None:
        for output in piece.output.outputs:
            _check_output(output)


def _check_output(output: CompletionOutput) -> None:
    if output.error is not None:
        raise ApiError(500, output.error, "server_error", "model_failed")


def _event(record: Record) -> bytes:
    text = to_json(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return b"data: " + text + b"\n\n"
