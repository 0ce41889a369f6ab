"""Connections of clients that send or read nothing are closed; requests take their time."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import pytest
import uvicorn

from emsjax.serve.connections import ImpatientProtocol

PATIENCE = 0.4
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
LAST = HEAD[:-2] + b"Connection: close\r\n\r\n1234"


LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PART, PARTS = b"x" * 100_000, 400
MOST_WAITING = 20
all_sent = threading.Event()


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body, thinks for longer than the protocol waits, and answers."""
    if scope["path"] == "/large":
        await large(send)
        return
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(2 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


async def large(send: Any) -> None:
    """Answers with more than the buffers of any system hold."""
    headers = [(b"content-length", b"%d" % (len(PART) * PARTS))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(PARTS):
        more = number + 1 < PARTS
        await send({"type": "http.response.body", "body": PART, "more_body": more})
    all_sent.set()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    class Protocol(ImpatientProtocol):
        patience = PATIENCE
        most_waiting = MOST_WAITING
        _waiting: ClassVar[dict[ImpatientProtocol, None]] = {}

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


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    while part := client.recv(1 << 20):
        received += part
    return bytes(received)


def test_an_answer_that_is_not_read_ends(address: tuple[str, int]):
    """Nothing is read until the server has given up; then there is only what was on its way."""
    all_sent.clear()
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(LARGE)
        assert all_sent.wait(20), "what is sent to a lost connection is dropped"
        with suppress(ConnectionResetError):
            assert len(read_all(client)) < len(PART) * PARTS


def test_an_answer_that_is_read_slowly_is_whole(address: tuple[str, int]):
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(LARGE)
        received, pauses = 0, 0
        while part := client.recv(4 << 20):
            received += len(part)
            if received > pauses * 10_000_000:
                pauses += 1
                threading.Event().wait(PATIENCE / 2)
    assert received > len(PART) * PARTS


def test_the_oldest_of_too_many_idle_connections_is_closed(address: tuple[str, int]):
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=20))
            for _ in range(3 * MOST_WAITING)
        ]
        assert clients[0].recv(1) == b""
        with socket.create_connection(address, timeout=20) as another:
            another.sendall(LAST)
            assert b"200 OK" in read_all(another)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_header_that_is_too_large_is_refused(address: tuple[str, int], end: bytes):
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000 + end
    # The server may close before all is sent.
    with socket.create_connection(address, timeout=20) as client, suppress(ConnectionError):
        client.sendall(head)
        assert b" 400 " in client.recv(1000)
    with socket.create_connection(address, timeout=20) as another:
        another.sendall(LAST)
        assert b"200 OK" in read_all(another)
