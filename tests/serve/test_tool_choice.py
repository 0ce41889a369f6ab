"""Calls that a chat must have, by the schemas of its tools."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from emsjax import LLM, SamplingParams, UserError
from emsjax.requests.called_tools import CalledTools
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.body import chat_of, completion_of
from emsjax.serve.options import Settings
from tests.serve.test_api import events, post, refused
from tests.tiny import letter_checkpoint

MESSAGES = [{"role": "user", "content": "abc"}]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["x"],
}
NAMED = {"type": "object", "properties": {"who": {"$ref": "#/$defs/who"}}, "required": ["who"]}
NAMED["$defs"] = {"who": {"enum": ["Ada", 'Bo "B"']}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool("at", parameters=POINT), tool("greet", parameters=NAMED), tool("stop")]
SCHEMAS = {"at": POINT, "greet": NAMED, "stop": {"type": "object", "maxProperties": 0}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tool_choice": "required"}, "needs tools"),
        ({"tool_choice": "required", "tools": []}, "needs tools"),
        ({"tool_choice": named("f")}, "names 'f', which is not one of tools"),
        ({"tool_choice": named("f"), "tools": TOOLS}, "names 'f', which is not one of tools"),
        ({"tool_choice": "at", "tools": TOOLS}, "tool_choice='at' is not known"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "is not known"),
        ({"tool_choice": "required", "tools": "at"}, "tools='at' must be a list"),
        ({"tool_choice": "required", "tools": [{"type": "function"}]}, "has no name"),
        ({"tool_choice": "required", "tools": [tool("f", parameters=3)]}, "of the tool 'f' are 3"),
        (
            {"tool_choice": "required", "tools": TOOLS, "guided_regex": "a"},
            "tool_choice and guided",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls=1 must be true"),
    ],
)
def test_what_cannot_be_called_is_named(given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as caught:
        chat_of({"messages": MESSAGES, **given})
    assert len(str(caught.value)) < 500


def test_completions_call_nothing():
    with pytest.raises(UserError, match="tools are called in chats"):
        completion_of({"prompt": "a", "tool_choice": "required"})


def test_choices_are_read():
    for choice, reads in [(None, True), ("auto", True), ("none", False)]:
        asked = chat_of(
            {"messages": MESSAGES, "tools": TOOLS} | ({"tool_choice": choice} if choice else {})
        )
        assert (asked.tools.reads, asked.tools.must) == (reads, None)
    asked = chat_of({"messages": MESSAGES, "tools": TOOLS, "tool_choice": named("stop")})
    assert isinstance(asked.params.structured_outputs, CalledTools)
    assert [name for name, _ in asked.params.structured_outputs.tools] == ["stop"]
    assert not asked.tools.several


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("torch")
    directory = letter_checkpoint("llama", tmp_path_factory.mktemp("calls") / "model")
    template = "{% if tools %}<tool_call>{% endif %}{{ messages[0]['content'] }}"
    _set_template(directory, template)
    # The sizes of other tests, whose compiled programs are in the cache.
    llm = LLM(str(directory), max_batch_size=4, max_model_len=200, planner=False)
    backend = Backend(llm, Settings(name="letters"))
    yield TestClient(make_app(backend), raise_server_exceptions=False)
    backend.close()


def _set_template(directory: Path, template: str) -> None:
    """Adds a template, and a token for the line break, which calls have, instead of one for ~."""
    (directory / "chat_template.jinja").write_text(template)
    tokenizer = directory / "tokenizer.json"
    text = json.loads(tokenizer.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["\u010a"] = vocabulary.pop("~")
    tokenizer.write_text(json.dumps(text))


def calls_in(choice: Any) -> list[Any]:
    """Returns the calls of an output, after checking their form and arguments."""
    message = choice["message"]
    assert message["content"] is None, "nothing but calls"
    for call in message["tool_calls"]:
        function = call["function"]
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
    return message["tool_calls"]


def ask(client: TestClient, **given: Any) -> list[Any]:
    given = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 190, **given}
    return list(post(client, "/v1/chat/completions", **given)["choices"])


def test_a_call_that_is_required_comes(client: TestClient):
    names, numbers = set(), set()
    for choice in ask(client, tool_choice="required", seed=0, n=8):
        if choice["finish_reason"] == "length":
            continue
        assert choice["finish_reason"] == "tool_calls"
        calls = calls_in(choice)
        names |= {call["function"]["name"] for call in calls}
        numbers.add(len(calls))
    assert len(names) > 1
    assert len(numbers) > 1
    for choice in ask(client, tool_choice="required", seed=0, n=4, parallel_tool_calls=False):
        assert len(calls_in(choice)) == 1


def test_the_tool_that_is_named_is_called(client: TestClient):
    for name in SCHEMAS:
        (choice,) = ask(client, tool_choice=named(name), seed=3)
        (call,) = calls_in(choice)
        assert call["function"]["name"] == name
        assert choice["finish_reason"] == "stop"
    given = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 190, "seed": 3}
    chunks = events(client, "/v1/chat/completions", **given, tool_choice=named("at"))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    (choice,) = ask(client, tool_choice=named("at"), seed=3)
    (whole,) = calls_in(choice)
    assert streamed["function"] == whole["function"]
    assert not any(delta.get("content") for delta in deltas)


def test_a_model_without_a_form_for_calls_refuses(backend: Backend):
    other = TestClient(make_app(backend), raise_server_exceptions=False)
    given = {"messages": [{"role": "user", "content": "w7"}], "tools": TOOLS}
    status, error = refused(other, "/v1/chat/completions", **given, tool_choice="required")
    assert status == 400
    assert "tool_choice asks for a call" in error["message"]


def test_a_pattern_that_would_break_the_call_is_refused(client: TestClient):
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": ".*"}}}
    given = {"messages": MESSAGES, "tools": [tool("f", parameters=schema)]}
    status, error = refused(client, "/v1/chat/completions", **given, tool_choice="required")
    assert status == 400
    assert "allows a quote" in error["message"]


def test_parameters_without_such_calls_differ():
    one, other = (CalledTools(tools=(("f", "{}"),), several=several) for several in (True, False))
    params = [SamplingParams(structured_outputs=each) for each in (one, other)]
    assert params[0] != params[1]
    assert params[0] == SamplingParams(structured_outputs=CalledTools(tools=(("f", "{}"),)))
