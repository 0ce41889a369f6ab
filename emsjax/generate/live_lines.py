"""Lines of a pipe or a terminal, which may arrive late."""

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread
from typing import BinaryIO

from emsjax.errors import UserError

# Long enough not to spin, short compared with a decoding step.
_PATIENCE_S = 0.002
# Lines to read ahead; bounds the memory when input arrives faster than it is processed.
_AHEAD = 64


def live_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Reads lines without blocking: yields None while the next line has not arrived.

    Args:
      stream: read to its end by a separate thread. Nothing else may read or close it, because a
        reader that waits for a line holds the stream's lock.

    Yields:
      Each line, or None after a short wait without one, so that the caller can do other work.

    Raises:
      UserError: reading failed.
    """
    lines: Queue[bytes | OSError] = Queue(_AHEAD)
    Thread(target=_feed, args=(stream, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_PATIENCE_S)
        except Empty:
            yield None
            continue
        if isinstance(line, OSError):
            raise UserError(
                f"reading the input failed ({line.strerror or line}); run the command again."
            ) from line
        if not line:
            return
        yield line


def _feed(stream: BinaryIO, lines: "Queue[bytes | OSError]") -> None:
    try:
        for line in stream:
            lines.put(line)
    except OSError as error:
        lines.put(error)
    else:
        lines.put(b"")  # marks the end: a line has at least its line break
