"""The first job that samples in a running batch waits for its program; the others do not."""

import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.monitoring
import pytest
from jax._src.dispatch import BACKEND_COMPILE_EVENT

from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.programs import PROGRAMS
from emsjax.sampling.choice import make_choice
from tests.engine.setup import make_engine, tiny_model

SAMPLED = make_choice(seed=7, temperature=1.0)
PATIENCE = 20.0  # seconds, after which a test that hangs fails


@pytest.fixture(autouse=True)
def _strict_in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the thread the settings of the tests, without which jax compiles another program."""
    compile_sampled = Engine._compile_sampled

    def strict(engine: Engine, job: Job) -> None:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            compile_sampled(engine, job)

    monkeypatch.setattr(Engine, "_compile_sampled", strict)


@pytest.fixture
def engine() -> Engine:
    return make_engine(tiny_model("llama"), "prompt-lookup", 2)


@pytest.fixture
def compiled() -> Iterator[list[tuple[str, bool]]]:
    """Collects what is compiled: its name, and whether the main thread waits for it."""
    found: list[tuple[str, bool]] = []

    def note(event: str, _: float, **about: Any) -> None:
        if event == BACKEND_COMPILE_EVENT:
            name = about["fun_name"].removeprefix("jit(").removesuffix(")")
            found.append((name, threading.current_thread() is threading.main_thread()))

    jax.monitoring.register_scalar_listener(note)
    yield found
    jax.monitoring.unregister_scalar_listener(note)


def greedy(key: int, tokens: int = 12) -> Job:
    return Job(key, [5, 6, 7, key], tokens)


def sampled(key: int, **more: Any) -> Job:
    return Job(key, [5, 6, 7, key], 12, choice=SAMPLED, **more)


def texts(engine: Engine, todo: list[Job]) -> dict[object, tuple[int, ...]]:
    return {each.job.key: each.token_ids for each in engine.run(todo)}


def test_greedy_jobs_pass_one_that_waits_for_its_program(
    monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[str, bool]]
):
    """The program comes into being only after the greedy jobs, of which some came later."""
    engine = make_engine(tiny_model("llama"), "prompt-lookup", 3)
    gate, compile_sampled = threading.Event(), engine._compile_sampled

    def when_allowed(job: Job) -> None:
        assert gate.wait(PATIENCE)
        compile_sampled(job)

    monkeypatch.setattr(engine, "_compile_sampled", when_allowed)
    todo = [greedy(0), greedy(1), greedy(2), sampled(3), greedy(4), sampled(5), greedy(6)]
    order, done = [], {}
    for finished in engine.run(todo):
        order.append(finished.job.key)
        done[finished.job.key] = finished.token_ids
        if len(order) == 5:
            gate.set()
    assert sorted(order[:5]) == [0, 1, 2, 4, 6]
    assert sorted(order[5:]) == [3, 5]
    # What was compiled beside the run is what the run uses: nothing is compiled again.
    for name in ("decode_sampled", "_empty_sampling"):
        assert [waited for each, waited in compiled if each == name] == [False]
    assert sorted(waited for name, waited in compiled if name == "admit_job") == [False, True]
    started_together = make_engine(tiny_model("llama"), "prompt-lookup", 3)
    assert done == texts(started_together, [*todo[3:], *todo[:3]])


def test_jobs_that_start_together_need_one_program(
    engine: Engine, compiled: list[tuple[str, bool]]
):
    assert len(texts(engine, [greedy(0), sampled(1), greedy(2), sampled(3)])) == 4
    names = [name for name, _ in compiled]
    assert (names.count("decode_sampled"), names.count("decode")) == (1, 0)
    assert all(waited for _, waited in compiled)


def test_no_more_jobs_are_taken_ahead_than_there_are_slots(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    gate, compile_sampled = threading.Event(), engine._compile_sampled
    taken: list[int] = []

    def when_allowed(job: Job) -> None:
        assert gate.wait(PATIENCE)
        compile_sampled(job)

    def stream() -> Iterator[Job]:
        for key in range(9):
            taken.append(key)
            yield sampled(key) if key else greedy(key, tokens=64)
            if not key:
                yield None  # the first job steps before the others come

    monkeypatch.setattr(engine, "_compile_sampled", when_allowed)
    results = engine.run(stream())
    first = next(results)
    assert first is not None
    assert first.job.key == 0
    assert taken == [0, 1, 2]
    gate.set()
    assert sorted(each.job.key for each in results) == list(range(1, 9))


def test_samples_of_one_prompt_wait_together(engine: Engine):
    group = object()
    todo = [greedy(0), greedy(1), *(sampled(key, group=group) for key in (2, 3, 4)), greedy(5)]
    assert sorted(texts(engine, todo)) == list(range(6))


def test_what_goes_wrong_in_the_thread_is_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def fails(_job: Job) -> None:
        raise RuntimeError("no room for the program")

    monkeypatch.setattr(engine, "_compile_sampled", fails)
    done = []
    with pytest.raises(RuntimeError, match="no room"):
        done += [each.job.key for each in engine.run([greedy(0), greedy(1), sampled(2)])]


def test_the_names_of_the_programs_are_those_that_jax_reports(engine: Engine):
    reported = {program.__name__ for program in (engine._decode, engine._decode_sampled)}
    assert reported == PROGRAMS.keys()
