"""Connections of clients that do not say what they want, or do not take it, which end soon."""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """HTTP that closes connections whose client keeps it waiting.

    Without it, anybody who opens connections and sends nothing, or reads nothing, holds them, and
    the server has only so many. A request that has arrived may take as long as it needs.

    Attributes:
      patience: seconds for the head of a request, as many for its body, and as many in which
        nothing of an answer is read.
      most_waiting: connections on which the server may wait for a request, kept ones included.
        Beyond them, the one on which it has waited longest is closed.
    """

    patience: ClassVar[float] = 60.0
    most_waiting: ClassVar[int] = 512
    _waiting: ClassVar[dict["ImpatientProtocol", None]] = {}

    def connection_made(self, transport: Any) -> None:
        """Starts to wait for the first request."""
        super().connection_made(transport)
        self._awaited: Any = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes more of a request."""
        super().data_received(data)
        self._wait()

    def pause_writing(self) -> None:
        """Starts to wait for the client to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops waiting for the client to read."""
        super().resume_writing()
        self._stop_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._stop_waiting()
        self._stop_unread()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Begins to wait for a part of a request, unless it waits for this part already."""
        awaited = self.conn.their_state
        if awaited is self._awaited and self._deadline is not None:
            return
        self._stop_waiting()
        if awaited in (h11.IDLE, h11.SEND_BODY):
            self._awaited = awaited
            self._deadline = self.loop.call_later(self.patience, self._close)
            self._waiting[self] = None
            if len(self._waiting) > self.most_waiting:
                next(iter(self._waiting))._close()

    def _close(self) -> None:
        """Closes the connection, at the latest once nothing more of an answer has been read."""
        self._stop_waiting()
        self.transport.close()
        self._stop_unread()
        self._unread = self.loop.call_later(self.patience, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
