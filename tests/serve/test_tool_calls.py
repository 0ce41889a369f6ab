"""Calls of tools are read from the text, whole or in pieces."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from emsjax.requests.outputs import CompletionOutput, Piece, RequestOutput
from emsjax.serve.answers import ChatAnswer
from emsjax.serve.body import chat_of
from emsjax.serve.tool_calls import ToolText

ONE = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
TWO = 'Let me see. <tool_call>{"name": "f", "arguments": {}}</tool_call>\n' + ONE + "\n"
NO_CALLS = [
    "",
    "plain <tool",
    "<tool_call>no</tool_call>",
    '<tool_call>{"name": 3}</tool_call>',
    "<",
]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
MESSAGES = [{"role": "user", "content": "1 + 2?"}]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_pieces_make_the_same_text_and_calls(size: int):
    text, shown, calls = ToolText(), "", []
    pieces = [TWO[n : n + size] for n in range(0, len(TWO), size)]
    for place, piece in enumerate(pieces, start=1):
        new, found = text.feed(piece, place == len(pieces))
        shown += new
        calls += found
    assert shown == "Let me see."
    assert [call["index"] for call in calls] == [0, 1]
    first, second = (call["function"] for call in calls)
    assert (first["name"], first["arguments"]) == ("f", "{}")
    assert json.loads(second["arguments"]) == {"a": 1, "b": "é"}
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("text", NO_CALLS)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_call_stays_text(text: str, size: int):
    read, shown = ToolText(), ""
    for start in range(0, len(text), size):
        new, calls = read.feed(text[start : start + size])
        shown += new
        assert not calls
    assert shown + read.feed("", last=True)[0] == text


def test_a_call_that_is_cut_stays_text_and_one_without_its_end_counts():
    assert ToolText().feed('a <tool_call>{"name": "f", "arg', last=True) == (
        'a <tool_call>{"name": "f", "arg',
        [],
    )
    _, (call,) = ToolText().feed('<tool_call>{"name": "f"}', last=True)
    assert call["function"] == {"name": "f", "arguments": "{}"}


def answer(text: str, template: str = "<tool_call>", **given: Any) -> tuple[Any, list[Any]]:
    """Returns the whole answer for a text, and the chunks of the stream."""
    backend = SimpleNamespace(name="m", writes_calls="<tool_call>" in template)
    asked = chat_of({"messages": MESSAGES, "tools": TOOLS} | given)
    output = CompletionOutput(0, text, (5, 6), "stop")
    whole = RequestOutput("1", None, (3,), [output], None)  # type: ignore[arg-type]

    class Call:
        requests = (SimpleNamespace(prompt_token_ids=(3,)),)

        async def pieces(self) -> AsyncGenerator[Piece, None]:
            for start in range(0, len(text), 5):
                yield Piece("1", 0, text[start : start + 5], (5,))
            yield Piece("1", 0, "", (6,), "stop", whole)

        def give_up(self) -> None:
            pass

    async def run() -> tuple[Any, list[Any]]:
        found = await ChatAnswer(backend, asked).whole(Call())  # type: ignore[arg-type]
        events = ChatAnswer(backend, asked).events(Call())  # type: ignore[arg-type]
        *chunks, _ = [event async for event in events]
        return found, [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]

    return asyncio.run(run())


def test_answers_have_calls_in_the_form_of_the_api():
    whole, chunks = answer(TWO)
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["f", "add"]
    assert all(call.keys() == {"id", "type", "function"} for call in calls)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["function"] for call in streamed] == [call["function"] for call in calls]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "tool_calls"
    assert answer(ONE)[0]["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("given", [{"tool_choice": "none"}, {"template": ""}, {"tools": []}])
def test_text_stays_text_where_no_call_is_expected(given: dict[str, Any]):
    whole, chunks = answer(ONE, **given)
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": ONE}
    assert choice["finish_reason"] == "stop"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == ONE
