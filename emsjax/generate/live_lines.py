"""Lines of a pipe or a terminal, where the next one may take its time."""

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread
from typing import BinaryIO

from emsjax.errors import UserError

# Long enough not to spin, short against a decoding step.
_PATIENCE_S = 0.002
# Lines read ahead of need.
_AHEAD = 64


def live_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Read lines, with None whenever none has come yet, so that other work can go on meanwhile.

    Args:
      stream: read to its end by a thread of its own; nobody else may read or close it, since a
        reader that waits for a line holds the stream's lock.

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
            raise UserError(f"the input broke off ({line.strerror or line}).") from line
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
        lines.put(b"")  # the end: no line is empty
