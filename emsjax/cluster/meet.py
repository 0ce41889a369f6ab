"""How hosts find each other before jax connects their devices, and see that they fit together.

jax's own waiting ends with an error of its coordination service, or with the end of the process,
and does not compare what the hosts were given.
"""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from emsjax.cluster.place import Place
from emsjax.cluster.wire import SilentError, Wire
from emsjax.errors import UserError, reason, short
from emsjax.host.json_text import to_json

_AGAIN_S = 0.2
_HELLO_S = 10.0  # in which whoever connects must say who it is
# Where hosts may differ: each has its own paths. The weights are compared once they are loaded.
_OWN = ("model", "tokenizer", "draft_model")


@dataclass(frozen=True)
class Peer:
    """Another host.

    Attributes:
      index: which one.
      machine: its name.
      wire: the connection to it.
    """

    index: int
    machine: str
    wire: Wire

    def __str__(self) -> str:
        return f"host {self.index} ({self.machine})"


def gather(place: Place, facts: Mapping[str, Any], patience_s: float) -> list[Peer]:
    """Waits, as host 0, for the others, and tells them that all are there.

    Args:
      place: that of this process.
      facts: what must be the same on all hosts, by name.
      patience_s: how long to wait for all of them.

    Returns:
      The others, in order.

    Raises:
      UserError: a host has not come, or does not fit.
    """
    peers: dict[int, Peer] = {}
    try:
        with _listening(place) as door:
            until = time.monotonic() + patience_s
            while len(peers) < place.number - 1:
                connected = _next(door, until)
                if connected is None:
                    raise UserError(_missing(place, peers, patience_s))
                peer, said = _greet(connected)
                if peer is None:
                    continue
                if (wrong := _misfit(place, peers, peer, said, facts)) is not None:
                    _refuse(peer, wrong)
                    raise UserError(wrong)
                peers[peer.index] = peer
    except UserError as error:
        for peer in peers.values():
            _refuse(peer, str(error))
        raise
    return [peers[index] for index in sorted(peers)]


def report(place: Place, facts: Mapping[str, Any], patience_s: float) -> Peer:
    """Tells host 0 that this one is there.

    Args:
      place: that of this process.
      facts: see `gather`.
      patience_s: how long to look for host 0.

    Raises:
      UserError: host 0 cannot be reached.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            wire = Wire(socket.create_connection((place.name, place.port), timeout=_HELLO_S))
            break
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"host 0 at {place.address} has not answered for {patience_s:.0f} s "
                    f"({error.strerror or error}); start the command there with process_id=0, "
                    "and let connections to its ports pass"
                ) from error
            time.sleep(_AGAIN_S)
    leader = Peer(0, place.name, wire)
    hello = {"index": place.index, "number": place.number, "machine": socket.gethostname()}
    _tell(leader, hello | {"facts": dict(facts)})
    return leader


def coordinator(peers: list[Peer], place: Place) -> str:
    """Returns where jax's coordinator is to listen, and tells the others."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{place.address.rpartition(':')[0]}:{port}"
    for peer in peers:
        _tell(peer, {"coordinator": address})
    return address


def told(leader: Peer, patience_s: float) -> str:
    """Waits for host 0 to say where jax's coordinator listens.

    Raises:
      UserError: a host is missing or does not fit.
    """
    try:
        said = json.loads(leader.wire.receive(patience_s + _HELLO_S))
    except (EOFError, SilentError) as error:
        leader.wire.close()
        raise UserError(f"{leader} ended before all hosts had come; see what it says") from error
    if "failed" in said:
        leader.wire.close()
        raise UserError(said["failed"])
    return str(said["coordinator"])


def _listening(place: Place) -> socket.socket:
    try:
        return socket.create_server(("", place.port), backlog=place.number)
    except OSError as error:
        raise UserError(
            f"host 0 cannot listen on port {place.port} ({error.strerror}); give another port in "
            "coordinator_address, on all hosts"
        ) from error


def _next(door: socket.socket, until: float) -> socket.socket | None:
    door.settimeout(max(until - time.monotonic(), 0.001))
    try:
        return door.accept()[0]
    except TimeoutError:
        return None


def _greet(connected: socket.socket) -> tuple[Peer | None, Mapping[str, Any]]:
    """Returns who has connected; None if it is no host."""
    wire = Wire(connected)
    try:
        said = json.loads(wire.receive(_HELLO_S))
        return Peer(int(said["index"]), str(said["machine"]), wire), said
    except (EOFError, SilentError, ValueError, KeyError, TypeError):
        wire.close()
        return None, {}


def _misfit(
    place: Place,
    peers: Mapping[int, Peer],
    peer: Peer,
    said: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str | None:
    """Says what is wrong with a host that has come; None if nothing is."""
    if said.get("number") != place.number:
        return (
            f"{peer} was told of {said.get('number')} hosts, and host 0 of {place.number}; give "
            "the same num_processes on all"
        )
    if peer.index in peers or peer.index == 0:
        first = peers[peer.index].machine if peer.index in peers else socket.gethostname()
        return (
            f"{first} and {peer.machine} both are host {peer.index}; give each another "
            f"process_id, from 0 to {place.number - 1}"
        )
    theirs = dict(said.get("facts", {}))
    mine = json.loads(to_json(facts))  # tuples are lists in JSON
    for name in sorted((mine.keys() | theirs.keys()) - set(_OWN)):
        if theirs.get(name) != mine.get(name):
            here, there = (short(each.get(name, "not given")) for each in (mine, theirs))
            return f"{name} is {there} on {peer} and {here} on host 0; all hosts need the same"
    return None


def _missing(place: Place, peers: Mapping[int, Peer], patience_s: float) -> str:
    absent = [str(index) for index in range(1, place.number) if index not in peers]
    which = f"host {absent[0]} of {place.number} has"
    if len(absent) > 1:
        which = f"hosts {', '.join(absent)} of {place.number} have"
    return (
        f"{which} not come within {patience_s:.0f} s; start the same command there with "
        f"process_id={absent[0]}, where {place.address} can be reached"
    )


def _refuse(peer: Peer, why: str) -> None:
    with suppress(UserError):  # it is gone already
        _tell(peer, {"failed": why})
    peer.wire.close()


def _tell(peer: Peer, message: Mapping[str, Any]) -> None:
    try:
        peer.wire.send(to_json(message).encode())
    except (OSError, TypeError) as error:
        raise UserError(f"{peer} cannot be told anything ({reason(error)}); start again") from error
