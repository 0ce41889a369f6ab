"""What a command and its replicas say to each other, and how it travels through a pipe.

To a replica: one `Setup`, then a `Task` for each prompt, at last None, after which the replica ends
in order. If the pipe closes without a None, the command is gone, and the replica ends at once.

To the command: one `Ready`, then for each task its `RequestOutput` or a `Refused`, with `Tokens`
and `Compiling` between them, and `Alive` at times from the start. `Failed` is the last message of a
replica that cannot go on.

A message is a pickle behind its length, eight bytes. Both ends run the same code as the same user.
"""

import pickle
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any

from emsjax.requests.prompt_line import Prompt
from emsjax.requests.sampling_params import SamplingParams

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Setup:
    """What a replica needs to start.

    Attributes:
      engine: the arguments for `emsjax.llm.LLM`.
      cores: the CPU cores to run on; None for all.
    """

    engine: Mapping[str, Any]
    cores: tuple[int, ...] | None


@dataclass(frozen=True)
class Task:
    """A prompt to answer.

    Attributes:
      request_id: the id of its request, from which its seed is derived as in one process.
      prompt: text, token ids or chat messages.
      params: how to decode it.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True)
class Ready:
    """A replica has loaded its model.

    Attributes:
      name: the model's name.
      platform: what it runs on: "cpu", "gpu" or "tpu".
      slots: B, the samples that it decodes together.
      chat_template: whether the model has one.
    """

    name: str
    platform: str
    slots: int
    chat_template: bool


@dataclass(frozen=True)
class Tokens:
    """So many tokens were generated since the last of these messages."""

    count: int


@dataclass(frozen=True)
class Alive:
    """The replica is there, and does something or has nothing to do."""


@dataclass(frozen=True)
class Compiling:
    """A program takes long to compile; see `emsjax.host.compiling.when_compiling`."""

    program: str


@dataclass(frozen=True)
class Refused:
    """A prompt that does not fit the model.

    Attributes:
      request_id: the id of its request.
      error: one sentence that says what is wrong.
    """

    request_id: str
    error: str


@dataclass(frozen=True)
class Failed:
    """A `UserError` with which a replica ends."""

    error: str


class Sender:
    """Writes messages to a pipe, from any thread."""

    def __init__(self, pipe: FileIO):
        self._pipe, self._lock = pipe, threading.Lock()

    def __call__(self, message: object) -> None:
        """Sends a message.

        Raises:
          OSError: nobody reads the pipe.
        """
        data = pickle.dumps(message)
        rest = memoryview(_LENGTH.pack(len(data)) + data)
        with self._lock:
            while rest:
                rest = rest[self._pipe.write(rest) :]


def receive(pipe: FileIO) -> Any:
    """Waits for the next message.

    Raises:
      EOFError: the pipe has closed, perhaps in the middle of a message.
    """
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return pickle.loads(_exactly(pipe, length))


def _exactly(pipe: FileIO, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = pipe.readinto(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
