"""A replica: answers the prompts that arrive on standard input; see `messages.py`."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from emsjax.cli.command import quieten
from emsjax.errors import UserError
from emsjax.generate.replicas.messages import (
    Alive,
    Compiling,
    Failed,
    Ready,
    Refused,
    Sender,
    Setup,
    Task,
    Tokens,
    receive,
)
from emsjax.host.compiling import compiling_now, when_compiling
from emsjax.host.garbage import garbage_waits
from emsjax.host.patience import patience_s

# How often a replica shows that it is there, as a share of the command's patience.
_BEATS = 10


class _Desk:
    """Where tasks arrive and results leave.

    Args:
      llm: the model.
      tasks: the tasks; None after the last one.
      send: sends a message to the command.
    """

    def __init__(self, llm: Any, tasks: "SimpleQueue[Task | None]", send: Sender, pulse: "_Pulse"):
        self._llm, self._tasks, self._send, self._pulse = llm, tasks, send, pulse
        self._open = 0

    def answer(self) -> None:
        """Answers all tasks."""
        for output in self._llm.run(self._requests(), on_progress=self._emitted):
            self._open -= 1
            self._pulse.note(busy=self._open > 0)
            self._send(output)

    def _requests(self) -> Iterator[Any]:
        """Yields requests; None while there is none and others are being decoded."""
        while True:
            try:
                task = self._tasks.get(block=not self._open)
            except Empty:
                yield None
                continue
            if task is None:
                return
            try:
                request = self._llm.request(task.prompt, task.params, task.request_id)
            except UserError as error:
                self._send(Refused(task.request_id, str(error)))
            else:
                self._open += 1
                self._pulse.note(busy=True)
                yield request

    def _emitted(self, tokens: int) -> None:
        self._pulse.note(busy=True)
        if tokens:
            self._send(Tokens(tokens))


class _Pulse:
    """Shows at times that this replica is there, unless its device has stopped working.

    Args:
      send: sends a message to the command.
      patience: after how many seconds without progress the device seems to have stopped.
    """

    def __init__(self, send: Sender, patience: float):
        self._send, self._patience = send, patience
        self._busy_since: float | None = None
        Thread(target=self._show, daemon=True).start()

    def note(self, *, busy: bool) -> None:
        """Takes note of progress, and of whether more is to come."""
        self._busy_since = time.monotonic() if busy else None

    def _show(self) -> None:
        while True:
            if self._busy_since is not None and compiling_now():
                self.note(busy=True)
            since = self._busy_since
            if since is None or time.monotonic() - since < self._patience:
                with suppress(OSError):  # the command is gone, which `_take_in` notices
                    self._send(Alive())
            time.sleep(self._patience / _BEATS)


def main() -> int:
    """Runs a replica and returns its exit status."""
    pipe, send = _pipes()
    setup: Setup = receive(pipe)
    if setup.cores is not None:
        os.sched_setaffinity(0, setup.cores)
    # Before the model is loaded: the command may end meanwhile.
    tasks: SimpleQueue[Task | None] = SimpleQueue()
    Thread(target=_take_in, args=(pipe, tasks), daemon=True).start()
    quieten()
    pulse = _Pulse(send, patience_s())
    try:
        with garbage_waits():
            llm = _loaded(setup, send)
        with when_compiling(lambda program: send(Compiling(program))):
            _Desk(llm, tasks, send, pulse).answer()
    except UserError as error:
        send(Failed(str(error)))
        return 1
    return 0


def _pipes() -> tuple[FileIO, Sender]:
    """Takes standard input and output for messages, out of reach of everything else.

    What is printed goes to standard error. Processes that this one starts do not hold the pipes
    open.
    """
    pipe, out = (FileIO(os.dup(number), mode) for number, mode in ((0, "rb"), (1, "wb")))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return pipe, Sender(out)


def _take_in(pipe: FileIO, tasks: "SimpleQueue[Task | None]") -> None:
    while True:
        try:
            task = receive(pipe)
        except EOFError:
            os._exit(1)  # nobody waits for results any more
        tasks.put(task)
        if task is None:
            return


def _loaded(setup: Setup, send: Sender) -> Any:
    import jax

    from emsjax.llm import LLM

    llm = LLM(**setup.engine)
    template = bool(getattr(llm.tokenizer, "chat_template", None))
    send(Ready(llm.name, jax.default_backend(), llm.max_batch_size, template))
    return llm


if __name__ == "__main__":
    sys.exit(main())
