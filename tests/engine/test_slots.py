"""Slots as a service: jobs are submitted and cancelled at any time, and fail alone."""

import threading
from collections.abc import Callable, Sequence

import pytest

from emsjax.engine.engine import Engine
from emsjax.engine.job import Failed, Finished, Job
from emsjax.engine.slots import Slots
from emsjax.engine.waiting import LineFullError
from tests.engine.setup import jobs, make_engine, tiny_model

PATIENCE = 20.0  # seconds, after which a test that hangs fails


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(tiny_model("llama"), "prompt-lookup", 2)


def finish(slots: Slots) -> dict[object, Finished | Failed]:
    """Steps until nothing is left to do."""
    ended = {}
    while slots.busy:
        ended.update({each.job.key: each for each in slots.step(more=True).ended})
    slots.rest()
    return ended


def tokens(ended: dict[object, Finished | Failed]) -> dict[object, tuple[int, ...]]:
    assert all(isinstance(each, Finished) for each in ended.values())
    return {key: each.token_ids for key, each in ended.items() if isinstance(each, Finished)}


def texts(engine: Engine, todo: Sequence[Job]) -> dict[object, tuple[int, ...]]:
    return {each.job.key: each.token_ids for each in engine.run(todo) if each is not None}


def long(key: object, watch: Callable[[Sequence[int]], int | None] | None = None) -> Job:
    return Job(key, [5, 6, 7, 8, 9], 60, watch=watch)


def test_jobs_that_come_one_by_one_have_the_texts_of_a_batch(engine: Engine):
    todo = jobs(9, longest=60)
    slots, ended = Slots(engine), {}
    for job in todo:
        slots.submit([job])
        ended.update({each.job.key: each for each in slots.step(more=True).ended})
    assert tokens({**ended, **finish(slots)}) == texts(engine, todo)


def test_lower_priorities_go_first_and_equal_ones_in_order(engine: Engine):
    slots, started = Slots(engine), []
    for key, priority in [("a", 1), ("b", 0), ("c", 1), ("d", -1), ("e", 0)]:
        job = Job(key, [5, 6], 3, watch=lambda _, key=key: started.append(key))
        slots.submit([job], priority)
    finish(slots)
    assert list(dict.fromkeys(started)) == ["d", "b", "e", "a", "c"]


def test_a_full_line_refuses_jobs_and_keeps_those_it_has(engine: Engine):
    todo = jobs(5, longest=20)
    slots = Slots(engine, most_waiting=3)
    slots.submit(todo[:3])
    with pytest.raises(LineFullError, match="3 outputs wait for a slot, and 2 more would exceed"):
        slots.submit(todo[3:])
    assert slots.waiting == 3
    slots.step()
    slots.submit(todo[3:])
    assert finish(slots).keys() <= {job.key for job in todo}


def test_a_cancelled_job_frees_its_slot_or_its_place(engine: Engine):
    running, waiting, other, late = long("running"), long("waiting"), long("other"), long("late")
    slots = Slots(engine)
    slots.submit([running, other, waiting])
    slots.step(more=True)
    assert (slots.running, slots.waiting) == (2, 1)
    slots.cancel([running, waiting])
    slots.submit([late])
    slots.step(more=True)
    assert (slots.running, slots.waiting) == (2, 0)
    ended = finish(slots)
    assert tokens(ended) == texts(engine, [other, late])
    slots.cancel([other])
    assert finish(slots) == {}


def test_a_watch_that_fails_ends_its_job_alone(engine: Engine):
    def fails(_: Sequence[int]) -> int | None:
        raise ZeroDivisionError("of the watch")

    slots = Slots(engine)
    todo = [long("fails", fails), *jobs(4, longest=20)]
    slots.submit(todo)
    ended = finish(slots)
    failed = ended.pop("fails")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ZeroDivisionError)
    assert tokens(ended) == texts(engine, todo[1:])


def test_a_job_that_cannot_be_admitted_ends_alone(engine: Engine):
    slots = Slots(engine)
    todo = [Job("too long", [5] * (engine.capacity + 1), 4), *jobs(4, longest=20)]
    slots.submit(todo)
    ended = finish(slots)
    assert isinstance(ended.pop("too long"), Failed)
    assert tokens(ended) == texts(engine, todo[1:])


def test_a_device_that_fails_ends_what_runs_and_not_what_waits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    todo = jobs(5, longest=20)
    expected = texts(engine, todo)

    def fails(*_: object) -> None:
        raise MemoryError("of the device")

    slots = Slots(engine)
    slots.submit(todo)
    with monkeypatch.context() as broken:
        broken.setattr(engine, "advance", fails)
        lost, _ = slots.step(more=True)
    assert [type(each) for each in lost] == [Failed, Failed]
    ended = tokens(finish(slots))
    gone = {each.job.key for each in lost}
    assert ended == {key: text for key, text in expected.items() if key not in gone}


def test_a_thread_sleeps_until_a_job_comes_and_ends_when_closed(engine: Engine):
    slots, results, done = Slots(engine), [], threading.Event()

    def serve() -> None:
        while slots.wait():
            results.extend(slots.step(more=True).ended)
            if results:
                done.set()

    thread = threading.Thread(target=serve)
    thread.start()
    slots.submit([Job("late", [5, 6, 7], 4)])
    assert done.wait(PATIENCE)
    slots.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [each.job.key for each in results] == ["late"]


def test_what_needs_an_empty_device_runs_between_jobs(engine: Engine):
    todo = jobs(5, longest=20)
    slots, seen = Slots(engine), []
    slots.submit(todo)
    ended = {each.job.key: each for each in slots.step(more=True).ended}
    slots.when_empty(lambda: seen.append((slots.running, slots.waiting, engine._idle is None)))
    ended |= finish(slots)
    assert tokens(ended) == texts(engine, todo)
    ((running, waiting, forgotten),) = seen
    assert (running, forgotten) == (0, False)
    assert waiting >= 2
