"""Hosts find each other, or say which one is missing or does not fit."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from emsjax.cluster.meet import coordinator, gather, report, told
from emsjax.cluster.place import Place
from emsjax.errors import UserError

FACTS = {"emsjax": "1", "max_batch_size": 8, "model": "/a"}
PATIENCE_S = 20.0


@pytest.fixture
def places():
    """Returns the places of three hosts."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [Place(address, 3, index) for index in range(3)]


def follow(place, facts):
    leader = report(place, facts, PATIENCE_S)
    address = told(leader, PATIENCE_S)
    leader.wire.close()
    return address


def lead(place, facts, patience_s=PATIENCE_S):
    peers = gather(place, facts, patience_s)
    address = coordinator(peers, place)
    for peer in peers:
        peer.wire.close()
    return address


def met(leading, *following):
    """Returns what each host gets, the leader first: an address or an error."""
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(lead, *leading), *(pool.submit(follow, *each) for each in following)]
        return [call.exception() or call.result() for call in calls]


def test_all_learn_where_the_coordinator_is(places):
    own = FACTS | {"model": "/elsewhere"}
    first, *others = met((places[0], FACTS), (places[2], FACTS), (places[1], own))
    assert first.startswith("localhost:")
    assert first != places[0].address
    assert others == [first, first]


def test_a_missing_host_is_named(places):
    first, second = met((places[0], FACTS, 1.0), (places[1], FACTS))
    assert str(first).startswith(
        "host 2 of 3 has not come within 1 s; start the same command there with process_id=2, "
    )
    assert str(second) == str(first)


def test_several_missing_hosts_are_named(places):
    with pytest.raises(UserError, match=r"^hosts 1, 2 of 3 have not come within 0 s; "):
        lead(places[0], FACTS, 0.1)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("emsjax", "2", "emsjax is '2' on host 1 ({}) and '1' on host 0; all hosts need the same"),
        ("max_batch_size", 4, "max_batch_size is 4 on host 1 ({}) and 8 on host 0; all hosts"),
        ("exact", True, "exact is True on host 1 ({}) and 'not given' on host 0; all hosts need"),
    ],
)
def test_a_host_that_differs_is_named(places, name, value, error):
    both = [Place(place.address, 2, place.index) for place in places[:2]]
    first, second = met((both[0], FACTS), (both[1], FACTS | {name: value}))
    assert str(first).startswith(error.format(socket.gethostname()))
    assert str(second) == str(first)


def test_two_hosts_with_one_number_are_named(places):
    first, *others = met((places[0], FACTS), (places[1], FACTS), (places[1], FACTS))
    machine = socket.gethostname()
    assert str(first).startswith(f"{machine} and {machine} both are host 1; give each another ")
    assert [str(each) for each in others] == [str(first)] * 2


def test_hosts_that_were_told_other_numbers_are_named(places):
    first, _ = met((places[0], FACTS), (Place(places[0].address, 4, 3), FACTS))
    assert "was told of 4 hosts, and host 0 of 3; give the same num_processes on all" in str(first)


def test_strangers_are_ignored(places):
    both = [Place(place.address, 2, place.index) for place in places[:2]]

    def knock():
        while True:
            try:
                with socket.create_connection(("localhost", both[0].port)) as door:
                    door.sendall(b"GET / HTTP/1.1\r\n\r\n" * 9)
                    return
            except OSError:
                continue

    stranger = threading.Thread(target=knock)
    stranger.start()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lead, both[0], FACTS)
        stranger.join()
        second = pool.submit(follow, both[1], FACTS)
        assert first.result() == second.result()


def test_a_port_that_is_taken_is_named(places):
    with (
        socket.create_server(("", places[0].port)),
        pytest.raises(UserError, match=rf"^host 0 cannot listen on port {places[0].port} \("),
    ):
        lead(places[0], FACTS)


def test_a_leader_that_is_not_there_is_named(places):
    with pytest.raises(
        UserError, match=rf"^host 0 at {places[0].address} has not answered for 0 s"
    ):
        report(places[1], FACTS, 0.1)
