"""Connections without a whole request are closed; requests that arrived take their time."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from emsjax.serve.connections import ImpatientProtocol

PATIENCE = 0.4
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
LAST = HEAD[:-2] + b"Connection: close\r\n\r\n1234"


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body, thinks for longer than the protocol waits, and answers."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(2 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    class Protocol(ImpatientProtocol):
        patience = PATIENCE

    server = uvicorn.Server(uvicorn.Config(slow, http=Protocol, lifespan="off", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", 0), (HEAD[:20], 0), (HEAD + b"1", 0), (LAST, 1), (HEAD + b"1234" + LAST, 2)],
)
def test_only_whole_requests_are_waited_for(address: tuple[str, int], sent: bytes, answered: int):
    """The server closes every connection, the last two after their answers."""
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(sent)
        received = b""
        while part := client.recv(1000):
            received += part
    assert received.count(b"200 OK") == answered
