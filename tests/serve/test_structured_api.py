"""Structured output in the forms of the OpenAI API and of vLLM."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from emsjax.errors import UserError
from emsjax.requests.structured import StructuredOutputsParams
from emsjax.serve.backend import Backend
from emsjax.serve.body import chat_of, completion_of
from tests.serve.test_api import events, post, refused, texts

SCHEMA = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
CHOICES = [" w7 w8", " w9"]
MESSAGES = [{"role": "user", "content": "w7 w8"}]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": " *"},
            {"json": SCHEMA, "whitespace_pattern": " *"},
        ),
        ({"structured_outputs": {"regex": "b"}}, {"regex": "b"}),
        (
            {"structured_outputs": {"regex": "b"}, "response_format": {"type": "text"}},
            {"regex": "b"},
        ),
    ],
)
def test_all_forms_are_read(given: dict[str, Any], wanted: dict[str, Any] | None):
    expected = None if wanted is None else StructuredOutputsParams(**wanted)
    for asked in (
        completion_of({"prompt": "a", **given}),
        chat_of({"messages": MESSAGES, **given}),
    ):
        assert asked.params.structured_outputs == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"response_format": {"type": "xml"}}, "is not known; give a type of text"),
        ({"response_format": {"type": "json_schema"}}, "is not known"),
        ({"response_format": "json"}, "is not known"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice say what"),
        ({"guided_grammar": "root ::= a"}, "give guided_json, guided_regex"),
    ],
)
def test_other_forms_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        completion_of({"prompt": "a", **given})


def test_answers_are_what_was_asked_for(client: TestClient):
    asked = {"prompt": "w5 w6", "max_tokens": 12, "n": 6, "seed": 3, "guided_choice": CHOICES}
    choices = post(client, "/v1/completions", **asked)["choices"]
    assert {choice["text"] for choice in choices} <= set(CHOICES)
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    chunks = events(client, "/v1/completions", **asked)
    assert texts(chunks) == {choice["index"]: choice["text"] for choice in choices}
    answer = post(
        client,
        "/v1/chat/completions",
        messages=MESSAGES,
        structured_outputs={"regex": "( w7)+ w9"},
        temperature=0,
        logit_bias={"9": 50},
    )
    assert answer["choices"][0]["message"]["content"] == " w7 w9"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guided_regex": "("}, "cannot be compiled"),
        ({"guided_json": {"type": "number", "minimum": []}}, "minimum=[] of a number"),
        ({"guided_choice": ["x"]}, "no text that"),
    ],
)
def test_what_cannot_be_compiled_is_an_error_of_that_request(
    client: TestClient, given: dict[str, Any], message: str
):
    status, error = refused(client, "/v1/completions", prompt="w5", **given)
    assert status == 400
    assert message in error["message"]
    assert post(client, "/v1/completions", prompt="w5", max_tokens=1)["choices"]


def test_a_grammar_that_is_too_large_is_refused_with_its_size(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend.llm._reader._grammars, "_most", 100)
    status, error = refused(client, "/v1/completions", prompt="w5", guided_regex="a{200}")
    assert status == 400
    assert "needs 201 states, more than the 100 states that fit" in error["message"]
