"""Keys, sizes and clients that leave."""

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message

from emsjax import LLM
from emsjax.requests.service import Service
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.guards import Guarded
from emsjax.serve.options import Settings

PATIENCE = 20.0  # seconds, after which a test that hangs fails
LONG = {"prompt": "w7 w8", "max_tokens": 190, "ignore_eos": True}


@pytest.fixture(scope="module")
def guarded(backend: Backend) -> TestClient:
    return TestClient(Guarded(make_app(backend), api_key="key", max_body=100))


def test_a_key_is_needed_for_all_that_costs_something(guarded: TestClient):
    for headers in ({}, {"authorization": "Bearer kex"}, {"authorization": b"Bearer k\xe9y"}):
        answer = guarded.post("/tokenize", json={"prompt": "w7"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    right = {"authorization": "Bearer key"}
    assert guarded.post("/tokenize", json={"prompt": "w7"}, headers=right).status_code == 200
    assert guarded.get("/v1/models").status_code == 401
    assert guarded.get("/health").status_code == 200


def test_a_large_body_is_refused_however_it_is_sent(client: TestClient):
    def parts() -> Any:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"w7 " * 1000

    headers = {"content-type": "application/json"}
    for content in (b"".join(parts()), parts()):
        answer = client.post("/tokenize", content=content, headers=headers)
        assert answer.status_code == 413
        assert "more than 10000 bytes" in answer.json()["error"]["message"]


def test_a_page_of_another_site_cannot_make_the_model_work(client: TestClient):
    answer = client.post("/tokenize", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


class Client:
    """A client that leaves once it has received something, or at once."""

    def __init__(self, path: str, fields: Any, *, waits_for: str):
        self._body = [json.dumps(fields).encode()]
        self._left, self._waits_for = asyncio.Event(), waits_for
        headers = [(b"content-type", b"application/json")]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        self.scope |= {"query_string": b"", "root_path": "", "scheme": "http"}
        self.received = b""

    async def receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.received += message.get("body", b"")
        if self._waits_for.encode() in self.received:
            self.leave()

    def leave(self) -> None:
        self._left.set()


async def call(app: ASGIApp, client: Client) -> None:
    await asyncio.wait_for(app(client.scope, client.receive, client.send), PATIENCE)


def test_a_client_that_leaves_frees_its_slot(
    backend: Backend, client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    """The slots are held at their next step, so that no request ends by itself."""
    service, submitted, cancelled = backend.service, [], []
    submit, cancel, step = service.submit, service.cancel, service.slots.step
    go_on = threading.Event()

    def step_once(more: bool) -> Any:
        stepped = step(more)
        assert go_on.wait(PATIENCE)
        return stepped

    monkeypatch.setattr(
        service, "submit", lambda *a, **k: submitted.append(submit(*a, **k)) or submitted[-1]
    )
    monkeypatch.setattr(service, "cancel", lambda each: cancelled.append(each) or cancel(each))
    monkeypatch.setattr(service.slots, "step", step_once)
    app = make_app(backend)

    async def leave_all() -> None:
        stream = Client("/v1/chat/completions", {**CHAT, "stream": True}, waits_for="assistant")
        await call(app, stream)
        whole = Client("/v1/completions", LONG, waits_for="never")
        waiting = asyncio.ensure_future(call(app, whole))
        while len(submitted) < 2 and not waiting.done():
            await asyncio.sleep(0)
        whole.leave()
        await waiting
        assert b"[DONE]" not in stream.received
        assert whole.received == b""

    asyncio.run(leave_all())
    assert cancelled == submitted
    assert len(cancelled) == 2
    go_on.set()
    # The slots are free again, and the next client gets its answer.
    answer = client.post("/v1/completions", json={"prompt": "w7", "max_tokens": 3})
    assert answer.status_code == 200
    assert (service.slots.waiting, service.slots.running) == (0, 0)


CHAT = {"messages": [{"role": "user", "content": "w7"}], "max_tokens": 190, "ignore_eos": True}


@pytest.fixture
def other(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A server whose thread decodes nothing."""

    def idle(service: Service) -> None:
        slots = service.slots
        slots._line.wait_for(lambda: slots._closed)
        service._end_all(None)

    monkeypatch.setattr(Service, "_run", idle)
    return Backend(llm, Settings(time_limit=0.01))


def test_a_request_has_a_time_limit(other: Backend):
    client = TestClient(make_app(other))
    answer = client.post("/v1/completions", json=LONG)
    assert answer.status_code == 504
    assert "longer than 0.01 s" in answer.json()["error"]["message"]
    streamed = client.post("/v1/completions", json={**LONG, "stream": True})
    assert '"code": "timeout"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert other.service.slots.waiting == 0
    other.close()
    late = client.post("/v1/completions", json=LONG)
    assert late.status_code == 503
    assert client.get("/health").status_code == 503
