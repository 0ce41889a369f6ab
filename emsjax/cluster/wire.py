"""A connection between two hosts, through which whole messages travel."""

import select
import socket
import struct
import threading
from contextlib import suppress

_LENGTH = struct.Struct("<Q")
# Far more than any message has: a stranger may have found the port.
_LONGEST = 1 << 32


class SilentError(Exception):
    """Nothing has come for too long."""


class Wire:
    """Both directions of a connection. One thread receives; any may send."""

    def __init__(self, connected: socket.socket):
        """Takes a connected socket."""
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._lock = connected, threading.Lock()

    def send(self, data: bytes) -> None:
        """Sends a message.

        Raises:
          OSError: the other side is gone.
        """
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, patience_s: float) -> bytes:
        """Waits for the next message.

        Raises:
          SilentError: nothing has come for so many seconds.
          EOFError: the other side is gone.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, patience_s))
        if length > _LONGEST:
            raise EOFError
        return bytes(self._exactly(length, patience_s))

    def close(self) -> None:
        """Closes the connection, also for a thread that receives."""
        with suppress(OSError):  # the other side has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int, patience_s: float) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self._read(rest, patience_s)
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def _read(self, into: memoryview, patience_s: float) -> int:
        try:
            if not select.select([self._socket], [], [], patience_s)[0]:
                raise SilentError
            return self._socket.recv_into(into)
        except (OSError, ValueError):  # reset, or closed by this side
            return 0
