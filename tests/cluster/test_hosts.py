"""What hosts say to each other during a run, and how one that is gone is missed."""

import os
import socket
import subprocess
import sys
import threading

import jax
import pytest

from emsjax.cluster import hosts as module
from emsjax.cluster import join
from emsjax.cluster.hosts import Follower, Leader
from emsjax.cluster.meet import Peer
from emsjax.cluster.place import Place
from emsjax.cluster.wire import Wire
from emsjax.errors import UserError

LONG_S = 60.0
# A host whose peer is gone, or which fails itself. A thread, such as one that compiles, goes on.
HOST = """
import socket, sys, threading, time
from emsjax.cli.command import run
from emsjax.cluster import hosts
from emsjax.cluster.meet import Peer
from emsjax.cluster.wire import Wire
from emsjax.errors import UserError

wait = threading.Event().wait
hosts._GRACE_S = 0.5
leave = hosts._leave_now

def leave_slowly(status):
    wait(0.2)  # in which another thread could say why once more
    leave(status)

hosts._leave_now = leave_slowly
lead, gone, waits = (word == "True" for word in sys.argv[1:])
with socket.create_server(("localhost", 0)) as door:
    here, there = socket.create_connection(door.getsockname()), door.accept()[0]
if lead:
    host = hosts.Leader([Peer(1, "second", Wire(here))], 60.0)
else:
    host = hosts.Follower(1, Peer(0, "first", Wire(here)), 2, 60.0)

def body():
    with host:
        threading.Thread(target=wait).start()
        if not gone:
            raise UserError("no disk")
        there.close()
        if waits:
            wait()
        while True:
            host.check()

sys.exit(run(body))
"""


@pytest.fixture
def ends(monkeypatch):
    """Returns the statuses with which the process would have ended, and an event for the first."""
    statuses, ended = [], threading.Event()

    def end(status):
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(module, "_GRACE_S", 0.3)
    monkeypatch.setattr(module, "_leave_late", lambda _: None)  # it would end a later test
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(module.atexit, "register", lambda *call: statuses.append(call[1]))
    return statuses, ended


@pytest.fixture
def wires():
    left, right = socket.socketpair()
    made = [_wire(each) for each in (left, right)]
    yield made
    for wire in made:
        wire.close()


def _wire(end):
    wire = Wire.__new__(Wire)  # a socket pair knows no TCP
    wire._socket, wire._lock = end, threading.Lock()
    return wire


@pytest.fixture
def lead(ends, wires):
    """Makes a leader, whose threads do not end the tests."""
    made = []

    def make(patience_s=LONG_S):
        made.append(Leader([Peer(1, "second", wires[0])], patience_s))
        return made[-1]

    yield make
    for each in made:
        each._over = True
        each._claim_end()


@pytest.fixture
def pair(lead, wires):
    """Makes the leader and the follower of two hosts in one process."""
    made = []

    def make(patience_s=LONG_S):
        made.append(Follower(1, Peer(0, "first", wires[1]), 2, patience_s))
        return lead(patience_s), made[-1]

    yield make
    for each in made:
        each._over = True
        each._claim_end()


def until(true):
    while not true():
        threading.Event().wait(0.01)


def test_messages_arrive_in_order_until_the_end(ends, pair):
    leader, follower = pair()
    with leader, follower:
        assert (leader.leads, follower.leads) == (True, False)
        leader.say("a", 1)
        leader.say("b", {"x": (2, 3)})
        leader.__exit__(None, None, None)
        assert list(follower.messages()) == [("a", 1), ("b", {"x": (2, 3)})]
    assert ends[0] == []


def test_what_differs_is_noticed(pair):
    leader, follower = pair()
    with leader:
        follower.agree("same", "")
        leader.agree("same", "has something else")
        follower.agree("other", "")
        with pytest.raises(UserError, match=r"^host 1 \(second\) has something else$"):
            leader.agree("same", "has something else")


def test_a_process_that_ends_is_missed_by_the_leader(wires, ends, pair):
    leader, _ = pair()
    wires[1].close()
    with (
        pytest.raises(UserError, match=r"^host 1 \(second\) is gone: its process has ended; "),
        leader,
    ):
        raise RuntimeError("a collective was closed")
    assert ends[0][:1] == [2]


def test_a_main_thread_that_waits_for_the_devices_of_a_lost_host_is_ended(wires, ends, lead, capfd):
    leader = lead()
    wires[1].close()
    ends[1].wait()
    with pytest.raises(UserError, match="is gone"):
        leader.check()
    assert capfd.readouterr().err == (
        "error: host 1 (second) is gone: its process has ended; what is written is whole, and the "
        "same commands with --resume continue it\n"
    )


@pytest.mark.parametrize("lead", [True, False])
@pytest.mark.parametrize(
    ("gone", "waits", "said"),
    [(True, False, "is gone"), (True, True, "is gone"), (False, False, "no disk")],
)
def test_no_thread_keeps_a_process(lead, gone, waits, said):
    given = map(str, (lead, gone, waits))
    ended = subprocess.run(
        [sys.executable, "-c", HOST, *given],
        check=False,
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )
    assert (ended.returncode, ended.stderr.count("error: ")) == (2, 1)
    assert said in ended.stderr


def test_a_host_ends_whoever_reads_what_it_says():
    """The thread that ends it could not write, and the main thread would wait for ever."""
    read, write = os.pipe()
    given = [sys.executable, "-c", HOST, "True", "True", "True"]
    os.close(read)
    ended = subprocess.run(given, check=False, stderr=write, stdout=write, timeout=LONG_S)
    os.close(write)
    assert ended.returncode == 2


TERMINATED = """
import os, signal, socket, sys, threading
from emsjax.cli.command import run
from emsjax.cluster.join import join_hosts

with socket.socket() as free:
    free.bind(("", 0))
    address = f"localhost:{free.getsockname()[1]}"

def body():
    with join_hosts(address, 1, 0):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

sys.exit(run(body))
"""


def test_a_host_can_be_terminated():
    """jax would only take note of the signal."""
    command = [sys.executable, "-c", TERMINATED]
    ended = subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=LONG_S)
    assert ended.returncode == 130


JOINED = """
import sys
from emsjax.cluster.join import join_hosts

with join_hosts(sys.argv[1], 2, int(sys.argv[2])):
    print("joined", flush=True)
"""


def test_devices_are_connected_when_hosts_have_joined():
    """CPUs say so themselves. They wait for half a minute, less than a host may take to compile."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", JOINED, address, str(index)] for index in range(2)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(each, **output) for each in commands]
    for process in processes:
        said = process.communicate(timeout=LONG_S)[0]
        assert process.returncode == 0, said
        assert "is connected to 1 peer ranks" in said.partition("joined")[0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_is_gone_while_jax_connects_is_missed(monkeypatch, wires, ends, which):
    """Else jax would wait for it for minutes."""
    place = Place("first:9000", 2, which)
    peer = Peer(1 - which, "other", wires[0])
    monkeypatch.setattr(join, "find_place", lambda *_: place)
    monkeypatch.setattr(join, "gather", lambda *_: [peer])
    monkeypatch.setattr(join, "report", lambda *_: peer)
    monkeypatch.setattr(join, "coordinator", lambda *_: "first:9001")
    monkeypatch.setattr(join, "told", lambda *_: "first:9001")

    def connect(*_, **__):
        wires[1].close()
        assert ends[1].wait(LONG_S)
        raise RuntimeError("not connected")

    monkeypatch.setattr(jax.distributed, "initialize", connect)
    with pytest.raises(UserError, match=rf"^host {1 - which} \(other\) is gone"):
        join.join_hosts()
    assert ends[0][0] == 2


def test_a_host_that_is_gone_while_jax_disconnects_is_missed(monkeypatch, wires, ends, lead):
    leader = lead()
    monkeypatch.setattr(module, "_LAST_GRACE_S", 0.3)

    def disconnect():
        wires[1].close()
        assert ends[1].wait(LONG_S)

    monkeypatch.setattr(jax.distributed, "shutdown", disconnect)
    with leader:
        pass
    assert ends[0] == [2]


def test_a_leader_that_ends_is_missed(wires, pair):
    _, follower = pair()
    wires[0].close()
    with (
        pytest.raises(UserError, match=r"^host 0 \(first\) is gone: its process has ended; "),
        follower,
    ):
        list(follower.messages())


def test_a_silent_host_is_missed(ends, lead):
    leader = lead(0.5)
    until(lambda: leader.failure)
    with pytest.raises(UserError, match=r"^host 1 \(second\) has not answered for 0 s; "):
        leader.say("a")
    ends[1].wait()


def test_a_host_that_shows_itself_is_not_missed(pair):
    leader, follower = pair(0.3)
    threading.Event().wait(1)
    assert (leader.failure, follower.failure) == (None, None)


def test_devices_that_stop_are_missed(ends, pair):
    leader, follower = pair(0.5)
    with leader.devices_run():
        until(lambda: leader.failure)
    with pytest.raises(UserError, match=r"^the devices have not ended a call for 0 s, "):
        leader.check()
    assert "has ended the run: the devices have not ended a call" in str(_failure(follower))


def test_compiling_elsewhere_is_no_stop(pair, monkeypatch):
    leader, _ = pair(0.5)
    monkeypatch.setattr(module, "compiling_now", lambda: True)
    with leader.devices_run():
        threading.Event().wait(1.2)
    assert leader.failure is None


def test_the_others_learn_why_a_host_cannot_go_on(ends, pair):
    leader, follower = pair()
    with pytest.raises(UserError, match=r"^no disk$"), follower:
        raise UserError("no disk")
    until(lambda: leader.failure)
    with pytest.raises(UserError, match=r"^host 1 \(second\) cannot go on: no disk; "):
        leader.check()


def test_an_interrupt_of_the_leader_ends_the_others(ends, pair):
    leader, follower = pair()
    with pytest.raises(KeyboardInterrupt), leader:
        raise KeyboardInterrupt
    assert ends[0] == [130]
    assert str(_failure(follower)) == "host 0 (first) has ended the run: interrupted"


def _failure(follower):
    with pytest.raises(UserError) as raised:
        list(follower.messages())
    return raised.value
