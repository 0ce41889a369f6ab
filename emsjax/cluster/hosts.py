"""What hosts say to each other during a run, and how they notice that one of them is gone."""

import atexit
import json
import os
import pickle
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from emsjax.cluster.meet import Peer
from emsjax.cluster.wire import SilentError
from emsjax.errors import UserError, reason
from emsjax.host.compiling import compiling_now
from emsjax.host.json_text import to_json
from emsjax.host.patience import VARIABLE

CHECK = "EMSJAX_CHECK_HOSTS"
# How often a host shows that it is there, as a share of the timeout.
_BEATS = 10
_QUIET, _COMPILING = b"", b"c"
# In which the main thread leaves by itself once a host is gone, and an error finds its cause.
_GRACE_S = 3.0
# In which jax disconnects the hosts at the end, where nothing but a whole run could be spoilt.
_LAST_GRACE_S = 30.0
_ENDED = "ended"
_REST = "what is written is whole, and the same commands with --resume continue it"


def checks() -> bool:
    """Returns whether hosts compare what they have computed after every call of the devices."""
    return os.environ.get(CHECK, "0") not in ("", "0")


class Hosts(ABC):
    """The other hosts of a model, as this one sees them; used as a context manager.

    Each host shows at times that it is there, and is missed if it does not. Then the run ends, even
    if the main thread waits for devices of the missing host.

    Attributes:
      index: which host this is.
      number: how many there are.
      failure: why the run cannot go on; None if it can.
      checks: whether the hosts compare what they have computed after every call of the devices.
    """

    def __init__(self, index: int, peers: Sequence[Peer], number: int, patience_s: float):
        """Starts to listen.

        Args:
          index: which host this is.
          peers: the others that it speaks with.
          number: how many hosts there are.
          patience_s: after how many seconds without a sign a host is missed.
        """
        self.index, self.number, self._peers = index, number, list(peers)
        self.failure: str | None = None
        self.checks = checks()
        self._patience_s = patience_s
        self._ended = self._over = False
        # Held by the thread that ends the process, so that one says why.
        self._leaving = threading.Lock()
        self._busy_since: float | None = None
        for peer in peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
            threading.Thread(target=self._show, args=(peer,), daemon=True).start()

    @property
    def leads(self) -> bool:
        """Whether this is host 0, which decides what all do."""
        return self.index == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._leave(error)
        else:
            self._end()
            self._ended = True
            _disconnect()
            self._over = True
            self._claim_end()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Has the run left if the block raises an error, and only then."""
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise

    @abstractmethod
    def agree(self, mine: str, otherwise: str) -> None:
        """Compares something with what the others have.

        Args:
          mine: what this host has.
          otherwise: how the message goes on after the name of a host that has something else.

        Raises:
          UserError: host 0 finds that another host has something else, or is gone.
        """

    @abstractmethod
    def _end(self) -> None:
        """Ends a run that went well."""

    @abstractmethod
    def _give_up(self, why: str) -> None:
        """Tells the others that this host cannot go on."""

    @abstractmethod
    def _take(self, peer: Peer, data: bytes) -> None:
        """Takes a message; in the thread that listens."""

    @contextmanager
    def devices_run(self) -> Iterator[None]:
        """Has the devices watched, which may wait for those of another host forever."""
        self.check()
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def check(self) -> None:
        """Checks that all hosts are there.

        Raises:
          UserError: one is not.
        """
        if self.failure is not None:
            raise UserError(self.failure)

    def _leave(self, error: BaseException) -> None:
        """Leaves the run because of an error.

        Raises:
          UserError: the error came of a host that is gone.
        """
        if not isinstance(error, KeyboardInterrupt | UserError):
            until = time.monotonic() + _GRACE_S
            while self.failure is None and time.monotonic() < until:
                time.sleep(0.01)
        if not self._claim_end():
            time.sleep(_GRACE_S)  # the thread that watches ends the process
        if self.failure is None:
            self._over = True
            self._give_up(_in_short(error))
        # jax would wait for the others, and Python, before that, for threads that compile.
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
        atexit.register(_leave_now, status)
        threading.Thread(target=_leave_late, args=(status,), daemon=True).start()
        if self.failure is not None and not isinstance(error, KeyboardInterrupt):
            raise UserError(self.failure) from error

    def _lost(self, why: str, at_once: bool = False) -> None:
        """Ends the run; in a thread that watches."""
        if self._over or self.failure is not None:
            return
        self.failure = why
        if at_once and not self._ended:
            self._abandon(why)
        self._give_up(why)
        time.sleep(_LAST_GRACE_S if self._ended else _GRACE_S)
        self._abandon(why)

    def _abandon(self, why: str) -> None:
        """Ends the process if the main thread does not: it waits for what nothing can end."""
        if self._claim_end():
            with suppress(OSError, ValueError):  # whoever reads it is gone, too
                print(f"error: {why}", file=sys.stderr, flush=True)
            _leave_now(2)

    def _claim_end(self) -> bool:
        """Returns whether the calling thread is the first to end the run; no other will be."""
        return self._leaving.acquire(blocking=False)

    def _listen(self, peer: Peer) -> None:
        while not self._over:
            try:
                data = peer.wire.receive(self._patience_s)
            except SilentError:
                self._lost(f"{peer} has not answered for {self._patience_s:.0f} s; {_REST}")
                return
            except EOFError:
                # jax aborts a process that loses host 0, and does not say why as we do.
                why = f"{peer} is gone: its process has ended; {_REST}"
                self._lost(why, at_once=peer.index == 0)
                return
            if data == _COMPILING:
                self._still_busy()
            elif data != _QUIET:
                self._take(peer, data)

    def _show(self, peer: Peer) -> None:
        while not self._over:
            compiles = compiling_now()
            with suppress(OSError):  # the thread that listens notices it
                peer.wire.send(_COMPILING if compiles else _QUIET)
            if compiles:
                self._still_busy()
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._patience_s:
                self._lost(
                    f"the devices have not ended a call for {self._patience_s:.0f} s, those of "
                    f"another host may be gone; raise {VARIABLE} if they are that slow; {_REST}"
                )
                return
            time.sleep(self._patience_s / _BEATS)

    def _still_busy(self) -> None:
        if self._busy_since is not None:
            self._busy_since = time.monotonic()


class Leader(Hosts):
    """Host 0, as which this process decides what all do."""

    def __init__(self, peers: Sequence[Peer], patience_s: float):
        """See `Hosts`."""
        self._answers: dict[int, SimpleQueue[Any]] = {each.index: SimpleQueue() for each in peers}
        super().__init__(0, peers, len(peers) + 1, patience_s)

    def say(self, *message: object) -> None:
        """Tells all others something, which must not refer to objects of this process alone.

        Raises:
          UserError: one of them is gone.
        """
        self.check()
        data = pickle.dumps(message)
        for peer in self._peers:
            with suppress(OSError):  # the thread that listens notices it
                peer.wire.send(data)

    def agree(self, mine: str, otherwise: str) -> None:
        """Compares something with what all others have.

        Args:
          mine: what this host has.
          otherwise: how the message goes on after the name of a host that has something else.

        Raises:
          UserError: another host has something else, or is gone.
        """
        for peer in self._peers:
            if self._answer(peer) != mine:
                raise UserError(f"{peer} {otherwise}")

    def _answer(self, peer: Peer) -> Any:
        while True:
            self.check()
            with suppress(Empty):
                return self._answers[peer.index].get(timeout=0.1)

    def _take(self, peer: Peer, data: bytes) -> None:
        message = json.loads(data)
        if "failed" in message:
            self._lost(f"{peer} cannot go on: {str(message['failed']).rstrip('.')}; {_REST}")
        else:
            self._answers[peer.index].put(message["has"])

    def _end(self) -> None:
        self.say(_ENDED, None)

    def _give_up(self, why: str) -> None:
        for peer in self._peers:
            with suppress(OSError):
                peer.wire.send(pickle.dumps((_ENDED, why)))


class Follower(Hosts):
    """Another host than 0, as which this process does what the leader says."""

    def __init__(self, index: int, leader: Peer, number: int, patience_s: float):
        """See `Hosts`."""
        self._messages: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        super().__init__(index, [leader], number, patience_s)

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """Yields what the leader says, until the run has ended.

        Raises:
          UserError: the run ended because of an error, or the leader is gone.
        """
        while (message := self._messages.get()) is not None:
            yield message
        self.check()

    def agree(self, mine: str, otherwise: str) -> None:
        """Tells the leader what this host has, see `Leader.agree`."""
        del otherwise
        self._send({"has": mine})

    def _take(self, peer: Peer, data: bytes) -> None:
        message = pickle.loads(data)
        if message[0] != _ENDED:
            self._messages.put(message)
            return
        if message[1] is None:
            self._ended = True
            self._messages.put(None)
        else:
            self._lost(f"{peer} has ended the run: {message[1]}")

    def _end(self) -> None:
        pass  # the leader has ended it

    def _give_up(self, why: str) -> None:
        self._messages.put(None)
        self._send({"failed": why})

    def _send(self, message: dict[str, str]) -> None:
        with suppress(OSError):
            self._peers[0].wire.send(to_json(message).encode())


def _in_short(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, UserError) else reason(error)


def _disconnect() -> None:
    """Ends jax's connections while the others are still watched, because it waits for them."""
    import jax

    jax.distributed.shutdown()


def _leave_late(status: int) -> None:
    time.sleep(_GRACE_S)
    _leave_now(status)


def _leave_now(status: int) -> None:
    for stream in sys.stdout, sys.stderr:
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
