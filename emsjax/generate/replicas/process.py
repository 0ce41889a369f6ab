"""One replica, as the command sees it."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from emsjax.errors import brief
from emsjax.generate.replicas.messages import Ready, Sender, Setup, Task, receive

COMMAND = (sys.executable, "-m", "emsjax.generate.replicas.child")
_ENDS_S = 5.0  # in which a process ends once its pipe has closed
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Gone:
    """The process has ended, and why: "was killed by SIGKILL"."""

    why: str


class Relay:
    """Passes on what replicas print, mostly all the same: each line as often as one says it."""

    def __init__(self) -> None:
        self._printed: Counter[str] = Counter()
        self._lock = Lock()

    def __call__(self, line: str, times: int) -> None:
        """Prints a line that a replica has now said so many times."""
        with self._lock:
            if times > self._printed[line]:
                self._printed[line] = times
                print(line, file=sys.stderr, flush=True)


class Replica:
    """A process that answers prompts.

    Attributes:
      number: its number, from 1.
      open: the tasks that it has not answered, by request id.
      ready: what it said when it had loaded its model; None before.
      heard: when it last said something, by `time.monotonic`.
    """

    def __init__(
        self,
        number: int,
        setup: Setup,
        environment: Mapping[str, str],
        news: "SimpleQueue[tuple[Replica, Any]]",
        relay: Relay,
    ):
        """Starts the process.

        Args:
          number: see above.
          setup: what it loads.
          environment: its environment variables.
          news: takes each message of the process, and at last a `Gone`.
          relay: takes what the process prints.

        Raises:
          OSError: the process cannot be started.
        """
        self.number = number
        self.open: dict[str, Task] = {}
        self.ready: Ready | None = None
        self.heard = time.monotonic()
        self._news, self._relay = news, relay
        self._process = subprocess.Popen(
            COMMAND,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the command, which then ends its replicas
        )
        self._last_line = ""
        self._printing = Thread(target=self._print, daemon=True)
        self._printing.start()
        Thread(target=self._listen, daemon=True).start()
        self._send(setup)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def room(self) -> int:
        """How many more tasks keep the slots busy: as many are to wait as there are slots."""
        return 0 if self.ready is None else 2 * self.ready.slots - len(self.open)

    def give(self, task: Task) -> None:
        """Hands a task to the process; if that is gone, the task stays open."""
        self.open[task.request_id] = task
        self._send(task)

    def finish(self) -> None:
        """Asks the process to end."""
        self._send(None)

    def end(self, patience_s: float = 0.0) -> None:
        """Waits for the process to end, and kills it if it has not ended in time."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver may hold it
                self._process.wait(_ENDS_S)
        with suppress(OSError):
            _pipe(self._process.stdin).close()

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # the process is gone, which `_listen` reports
            Sender(_pipe(self._process.stdin))(message)

    def _listen(self) -> None:
        pipe = _pipe(self._process.stdout)
        with pipe:
            while True:
                try:
                    message = receive(pipe)
                except EOFError:
                    break
                self.heard = time.monotonic()
                self._news.put((self, message))
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._printing.join(_ENDS_S)
        self._news.put((self, Gone(self._why())))

    def _why(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"was killed by {_signal(-status)}"
        said = brief(self._last_line, _LONGEST_REASON)
        return f"ended with status {status}{f' ({said})' if said else ''}"

    def _print(self) -> None:
        said: Counter[str] = Counter()
        with BufferedReader(_pipe(self._process.stderr)) as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                said[line] += 1
                self._last_line = line or self._last_line
                self._relay(line, said[line])


def _pipe(stream: Any) -> FileIO:
    """A pipe of the process; without a buffer, because of `bufsize=0`."""
    pipe: FileIO = stream
    return pipe


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (memory may have run out)" if name == "SIGKILL" else name
