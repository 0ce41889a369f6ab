"""The page at `/`, and the traces that it shows."""

import base64
import hashlib
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from emsjax import CompletionOutput, RequestOutput
from emsjax.engine import occupant
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.chat_page import chat_page
from emsjax.serve.guards import Guarded
from emsjax.serve.options import Options
from tests.serve.test_api import events, post, refused, texts

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w7 w8 w7 w8"}]
GREEDY = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}


def test_the_page_needs_no_key_and_may_only_load_from_its_server(backend: Backend):
    client = TestClient(Guarded(make_app(backend), api_key="key", max_body=100))
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    policy = dict(
        rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'", "no text becomes HTML"
    assert "unsafe" not in str(policy)
    for name in ("script", "style"):
        inside = re.findall(f"<{name}>(.*?)</{name}>", answer.text, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in inside)
        assert policy[f"{name}-src"].split() == [f"'sha256-{each.decode()}'" for each in hashes]
        assert answer.text.count(f"<{name}") == len(inside) > 0
    assert not re.findall(r"https?://|@import|url\(|innerHTML|(?<!-)\bstyle=", answer.text)
    assert client.post("/", content=b"{}").status_code == 415
    assert client.get("/index.html").status_code == 401


def test_the_page_knows_whether_to_ask_for_a_key(client: TestClient):
    assert "<body>" in client.get("/").text
    assert "<body data-needs-key>" in chat_page(needs_key=True).html
    assert refused(client, "/")[0] == 405


def test_a_server_without_a_page_records_no_traces(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    assert Options().engine() == {"trace": True}
    assert Options(page=False).engine() == {}
    monkeypatch.setattr(Backend, "traces", False)
    client = TestClient(make_app(backend), raise_server_exceptions=False)
    assert client.get("/").status_code == 404
    status, error = refused(client, CHAT, messages=MESSAGES, emsjax_trace=True)
    assert (status, "--no-page" in error["message"]) == (400, True)
    assert "emsjax_trace" not in str(post(client, CHAT, messages=MESSAGES, emsjax_trace=False))


def check(found: Any, output: CompletionOutput) -> None:
    """Compares the trace in an answer with that of the result behind it."""
    assert found.keys() == {"steps"}
    trace = output.trace
    wanted = [step for step in trace.steps if step.emitted]
    words = trace.token_texts
    for step, each in zip(found["steps"], wanted, strict=True):
        assert [token["source"] for token in step["tokens"]] == list(each.sources)
        assert step["drafted"] == [words[token] for token in each.drafted]
        assert step["accepted"] == each.accepted
        assert step["rejected"] == [words[token] for token in each.rejected]
    tokens = [token for step in found["steps"] for token in step["tokens"]]
    assert tuple(token["id"] for token in tokens) == output.token_ids
    assert "".join(token["text"] for token in tokens) == output.text


def test_answers_have_the_traces_of_their_results(
    client: TestClient, finished: list[RequestOutput]
):
    asked = {"messages": MESSAGES, **GREEDY, "emsjax_trace": True}
    (choice,) = post(client, CHAT, **asked)["choices"]
    *chunks, last = events(client, CHAT, **asked)
    assert "emsjax_trace" not in str(chunks)
    assert last["choices"][0]["delta"] == {}
    (text,) = post(client, TEXT, prompt="w7 w8", **GREEDY, emsjax_trace=True)["choices"]
    for answer, result in zip((choice, last["choices"][0], text), finished, strict=True):
        check(answer["emsjax_trace"], result.outputs[0])
    traces = [result.outputs[0].trace for result in finished]
    assert {source for trace in traces for source in trace.sources} == {"drafted", "bonus", "plain"}
    assert any(step.rejected for trace in traces for step in trace.steps)


def test_each_output_of_a_stream_has_a_trace(client: TestClient):
    asked = {"prompt": ["w7 w8", "w9"], "n": 2, "seed": 1, "max_tokens": 8, "ignore_eos": True}
    chunks = events(client, TEXT, **asked, emsjax_trace=True)
    written = texts(chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    traces = {each["index"]: each["emsjax_trace"] for each in choices if "emsjax_trace" in each}
    assert sorted(traces) == [0, 1, 2, 3]
    for index, trace in traces.items():
        tokens = [token["text"] for step in trace["steps"] for token in step["tokens"]]
        assert "".join(tokens) == written[index]


def test_nothing_is_traced_unless_it_is_asked_for(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    read = []
    steps_of = occupant.steps_of
    monkeypatch.setattr(occupant, "steps_of", lambda *a: read.append(a) or steps_of(*a))
    plain = post(client, CHAT, messages=MESSAGES, **GREEDY)["choices"]
    assert read == []
    (traced,) = post(client, CHAT, messages=MESSAGES, **GREEDY, emsjax_trace=True)["choices"]
    assert len(read) == 1
    del traced["emsjax_trace"]
    assert plain == [traced]


def test_what_a_trace_is_not_for(client: TestClient):
    status, error = refused(client, TEXT, prompt="w7", max_tokens=0, echo=True, emsjax_trace=True)
    assert (status, "emsjax_trace" in error["message"]) == (400, True)
    assert refused(client, CHAT, messages=MESSAGES, emsjax_trace="yes")[0] == 400
