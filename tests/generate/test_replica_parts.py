"""Parts of `--data-parallel`: devices, tasks, messages, what replicas print."""

import io
import os
from types import SimpleNamespace

import pytest

from emsjax.errors import UserError
from emsjax.generate.replicas import devices
from emsjax.generate.replicas.devices import cores_of, environment_of
from emsjax.generate.replicas.messages import Refused, Sender, Task, Tokens, receive
from emsjax.generate.replicas.process import Relay
from emsjax.generate.replicas.tasks import Tasks
from emsjax.requests.sampling_params import SamplingParams

TASKS = [Task(str(n), "p", SamplingParams()) for n in range(4)]


def test_each_replica_sees_a_device_of_its_own():
    found = [environment_of(number, 3, {"HOME": "/"}) for number in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0", "1", "2"]
    assert found[2] == {
        "HOME": "/",
        "CUDA_VISIBLE_DEVICES": "2",
        "TPU_VISIBLE_CHIPS": "2",
        "TPU_VISIBLE_DEVICES": "2",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": "localhost:8478",
        "TPU_PROCESS_PORT": "8478",
        "CLOUD_TPU_TASK_ID": "0",
    }


def test_a_replica_may_have_several_devices():
    assert environment_of(1, 2, {}, each=3)["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,3,1"
    found = [environment_of(number, 2, {}, each=4) for number in range(2)]
    assert [each["TPU_VISIBLE_CHIPS"] for each in found] == ["0,1,2,3", "4,5,6,7"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0,1,2,3", "4,5,6,7"]
    assert {each["TPU_CHIPS_PER_PROCESS_BOUNDS"] for each in found} == {"2,2,1"}
    assert [each["TPU_PROCESS_PORT"] for each in found] == ["8476", "8480"]


def test_replicas_share_the_devices_that_are_named():
    given = {"CUDA_VISIBLE_DEVICES": "5, GPU-ab", "TPU_VISIBLE_CHIPS": "6,7"}
    found = [environment_of(number, 2, given) for number in range(2)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["5", "GPU-ab"]
    assert [each["TPU_PROCESS_PORT"] for each in found] == ["8482", "8483"]
    with pytest.raises(UserError, match="data_parallel=3 needs 3 devices, but CUDA_VISIBLE_DEV"):
        environment_of(0, 3, given)


@pytest.mark.parametrize("none", ["", "-1"])
def test_gpus_that_are_switched_off_stay_so(none):
    assert environment_of(1, 2, {"CUDA_VISIBLE_DEVICES": none})["CUDA_VISIBLE_DEVICES"] == none


def test_older_names_agree_and_a_cpu_needs_no_names():
    given = {"TPU_CHIPS_PER_HOST_BOUNDS": "2,4,1", "TPU_HOST_BOUNDS": "2,1,1"}
    found = environment_of(0, 8, given)
    assert found["TPU_CHIPS_PER_HOST_BOUNDS"] == found["TPU_HOST_BOUNDS"] == "1,1,1"
    cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}
    assert environment_of(3, 4, cpu) == cpu


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        ({0, 1, 2, 3}, 2, [(0, 1), (2, 3)]),
        ({1, 4, 7, 8, 9}, 3, [(1,), (4, 7), (8, 9)]),
        ({3, 5}, 3, [(3,), (5,), (3,)]),
    ],
)
def test_replicas_on_a_cpu_share_its_cores(cores, count, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    given = {"JAX_PLATFORMS": "cpu"}
    assert [cores_of(number, count, given) for number in range(count)] == shares


def test_all_replicas_may_use_all_cores_beside_accelerators(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    there = SimpleNamespace(glob=lambda name: iter(["accel0"] if name == "accel[0-9]*" else []))
    monkeypatch.setattr(devices, "Path", lambda _: there)
    assert cores_of(0, 2, {}) is None
    assert cores_of(0, 2, {"JAX_PLATFORMS": "cpu"}) == (0,)


def test_tasks_come_back_before_others():
    tasks = Tasks(TASKS)
    first = [tasks.next(), tasks.next()]
    tasks.put_back(first)
    assert [tasks.next() for _ in range(4)] == TASKS
    assert not tasks.ended, "nobody has asked beyond the last one"
    assert tasks.next() is None
    assert (tasks.ended, tasks.arriving) == (True, False)
    tasks.put_back(TASKS[:1])
    assert not tasks.ended
    assert tasks.next() == TASKS[0]


def test_a_task_may_be_late_and_an_error_ends_them():
    def coming():
        yield None
        yield TASKS[0]
        raise UserError("no more")

    tasks = Tasks(coming())
    assert (tasks.next(), tasks.arriving, tasks.ended) == (None, True, False)
    assert (tasks.next(), tasks.arriving) == (TASKS[0], False)
    assert (tasks.next(), tasks.arriving, tasks.ended) == (None, False, True)
    assert str(tasks.failure) == "no more"


class Narrow(io.FileIO):
    """A pipe that takes and gives three bytes at a time."""

    def write(self, data):
        return super().write(data[:3])

    def readinto(self, place):
        return super().readinto(memoryview(place)[:3])


def test_messages_arrive_whole_or_not_at_all(tmp_path):
    path, said = tmp_path / "pipe", [TASKS[0], Tokens(3), Refused("1", "é" * 999), None]
    with Narrow(path, "wb") as pipe:
        for message in said:
            Sender(pipe)(message)
    with Narrow(path) as pipe:
        assert [receive(pipe) for _ in said] == said
        with pytest.raises(EOFError):
            receive(pipe)
    path.write_bytes(path.read_bytes()[:-1])
    with Narrow(path) as pipe:
        assert [receive(pipe) for _ in said[:-1]] == said[:-1]
        with pytest.raises(EOFError):
            receive(pipe)


def test_what_all_replicas_print_is_shown_once(capsys):
    relay = Relay()
    for line, times in [("a", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 2), ("a", 3)]:
        relay(line, times)
    assert capsys.readouterr().err == "a\nb\na\na\n"
