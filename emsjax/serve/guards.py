"""What stands before every route: the host, the key, the body's size, and clients that leave."""

import asyncio
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emsjax.errors import short
from emsjax.host.json_text import to_json
from emsjax.serve.errors import ApiError
from emsjax.serve.hosts import is_own

# Routes without a key: for the machines that watch the server, and the page that asks for the key.
_OPEN = frozenset({"/", "/health", "/version", "/metrics"})


class Guarded:
    """An app that reads whole bodies, of clients that may use it, and ends when they leave."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        max_body: int,
        hosts: frozenset[str] | None = None,
    ):
        """Wraps an app.

        Args:
          app: the app.
          api_key: what clients must give as `Authorization: Bearer KEY`; None for no key.
          max_body: the most bytes of a body.
          hosts: the names by which clients may call the server, see `hosts.own_names`.
        """
        self._app, self._api_key, self._max_body = app, api_key, max_body
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            body = await self._read(receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is not None:
            await _while_connected(self._app, scope, body, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host")  # which only HTTP/1.0 may leave out, and no browser does
        if self._hosts is not None and host is not None and not is_own(host, self._hosts):
            raise ApiError(
                403,
                f"this server does not go by the name {short(host)}; start it with "
                "--allowed-hosts and that name, or call it by its address",
                code="unknown_host",
            )
        if self._api_key is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization", "")
            wanted = f"Bearer {self._api_key}"
            if not secrets.compare_digest(given.encode(), wanted.encode()):
                raise ApiError(
                    401,
                    "the API key is wrong or missing; send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                )
        if scope["method"] != "POST":
            return
        # A page of another site may send any other type without the browser asking first.
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415, f"the body is {kind[:80] or 'of no type'}; send Content-Type: application/json"
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_body:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes | None:
        """Returns the body; None if the client left while sending it."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._max_body} bytes; send less at a time")


async def _while_connected(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    """Runs the app with a whole body, and cancels it once the client has left."""
    left = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(app(scope, replay, send))
    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.set()
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if not working.cancelled():
        working.result()


def error_response(error: ApiError) -> Response:
    """Returns an error as an answer."""
    return json_response(error.body(), error.status, error.headers)


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns an answer in JSON that every reader accepts."""
    text = to_json(content, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(text, status, dict(headers or {}), "application/json")
