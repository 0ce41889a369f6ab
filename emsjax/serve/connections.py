"""Connections of clients that do not say what they want, which end after a while."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """HTTP that closes connections whose next request has not arrived in time.

    Without it, anybody who opens connections and sends nothing holds them, and the server has only
    so many. A request that has arrived may take as long as it needs.

    Attributes:
      patience: seconds for the head of a request, and as many for its body.
    """

    patience = 60.0

    def connection_made(self, transport: Any) -> None:
        """Starts to wait for the first request."""
        super().connection_made(transport)
        self._awaited: Any = None
        self._deadline: asyncio.TimerHandle | None = None
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes more of a request."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Begins to wait for a part of a request, unless it waits for this part already."""
        awaited = self.conn.their_state
        if awaited is self._awaited and self._deadline is not None:
            return
        self._stop_waiting()
        if awaited in (h11.IDLE, h11.SEND_BODY):
            self._awaited = awaited
            self._deadline = self.loop.call_later(self.patience, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
