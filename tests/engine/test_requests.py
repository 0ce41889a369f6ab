"""Requests pass through slots: none is lost, none exceeds its limits, and none reads stale data."""

import jax
import jax.numpy as jnp
import pytest

from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import make_ladder
from tests.engine.setup import jobs, make_engine, run_all, tiny_model

MODEL = "llama"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(tiny_model(MODEL), "prompt-lookup", 3)


@pytest.fixture(scope="module")
def plain() -> Engine:
    return make_engine(tiny_model(MODEL), "none", 1)


def test_100_prompts_through_8_slots_each_return_once(plain: Engine):
    todo = jobs(100, longest=60)
    eight = make_engine(tiny_model(MODEL), "prompt-lookup", 8, make=make_ladder)
    results = run_all(eight, todo)
    alone = run_all(plain, todo)
    assert [r.token_ids for r in results] == [r.token_ids for r in alone]


def test_order_of_arrival_changes_nothing(engine: Engine):
    todo = jobs(10)
    forwards = run_all(engine, todo)
    backwards = {r.job.key: r.token_ids for r in engine.run(todo[::-1])}
    assert [r.token_ids for r in forwards] == [backwards[job.key] for job in todo]


def test_a_group_whose_first_job_has_no_room_for_a_token_ends(plain: Engine):
    """It leaves no cache to share, so the rest of the group must not wait for it."""
    full, group = [5] * plain.capacity, object()
    todo = [Job(n, full, 4, group=group) for n in range(3)] + [Job(3, [5, 6], 4)]
    assert [len(r.token_ids) for r in run_all(plain, todo)] == [0, 0, 0, 4]


def test_a_run_without_jobs_has_no_results(engine: Engine):
    assert list(engine.run([])) == []


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 8, 9, 63])
def test_max_tokens_cuts_exactly(engine: Engine, max_tokens: int):
    todo = [Job(i, [5, 6, 7] * 20, max_tokens) for i in range(4)]
    results = run_all(engine, todo)
    assert [len(r.token_ids) for r in results] == [max_tokens] * 4
    assert not any(r.stopped for r in results)


def test_a_stop_token_cuts_exactly_wherever_it_is_accepted(engine: Engine):
    prompt = [5, 6, 7] * 20
    (free,) = run_all(engine, [Job(0, prompt, 64)])
    for token in dict.fromkeys(free.token_ids):
        (result,) = run_all(engine, [Job(0, prompt, 64, (token,))])
        first = free.token_ids.index(token)
        assert result.token_ids == free.token_ids[: first + 1]
        assert result.stopped


def test_the_cache_capacity_cuts_exactly():
    small = make_engine(tiny_model(MODEL), "prompt-lookup", 2, capacity=256)
    large = make_engine(tiny_model(MODEL), "none", 1)
    todo = [Job(i, [5, 6, 7, 8] * 62, 64) for i in range(3)]
    for result, longer in zip(run_all(small, todo), run_all(large, todo), strict=True):
        assert result.token_ids == longer.token_ids[: 256 - 248]


def test_jobs_are_taken_only_as_slots_become_free(engine: Engine):
    taken = []

    def stream():
        for job in jobs(20):
            taken.append(job.key)
            yield job

    results = engine.run(stream())
    next(results)
    assert len(taken) <= engine.num_slots + 1
    assert len(list(results)) == 19


def test_steps_know_whether_requests_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """A plan that makes the last text end early is a bad plan while others wait."""
    waits, advance = [], engine.advance

    def spy(state, max_steps, others_wait):
        waits.append(others_wait)
        return advance(state, max_steps, others_wait)

    monkeypatch.setattr(engine, "advance", spy)
    list(engine.run(iter(jobs(engine.num_slots))))
    assert set(waits) == {False}
    waits.clear()
    list(engine.run(iter(jobs(2 * engine.num_slots))))
    first = waits.index(False)
    assert first > 0
    assert not any(waits[first:])
    waits.clear()
    ended = 0

    def open_stream():
        yield from jobs(engine.num_slots)
        while ended < engine.num_slots:
            yield None

    for _ in engine.run(open_stream()):
        ended += 1
    assert all(waits), "the next request may come at any time"


def test_jobs_that_are_not_ready_hold_up_nothing(engine: Engine):
    todo = jobs(6, longest=30)
    stream = iter([None, todo[0], None, None, *todo[1:4], None, *todo[4:], None])
    results = engine.run(stream)
    assert next(results).job.key == todo[0].key
    later = {r.job.key: r.token_ids for r in results}
    assert later == {r.job.key: r.token_ids for r in run_all(engine, todo)[1:]}


def test_jobs_taken_before_the_stream_fails_are_finished(engine: Engine):
    def stream():
        yield from jobs(5)
        raise OSError("the disk failed")

    finished = []

    def run() -> None:
        finished.extend(result.job.key for result in engine.run(stream()))

    with pytest.raises(OSError, match="the disk failed"):
        run()
    assert sorted(finished) == [job.key for job in jobs(5)]


def test_an_abandoned_run_does_not_affect_the_next(engine: Engine):
    todo = jobs(8)
    fresh = [r.token_ids for r in run_all(engine, todo)]
    abandoned = engine.run(todo[::-1])
    next(abandoned)
    abandoned.close()
    assert [r.token_ids for r in run_all(engine, todo)] == fresh


@pytest.mark.parametrize("drafter", ["prompt-lookup", "itself"])
def test_nothing_unwritten_is_read(monkeypatch: pytest.MonkeyPatch, engine: Engine, drafter: str):
    """Caches full of NaN give the same text, the draft model's cache included."""
    todo = jobs(6)
    clean = run_all(engine, todo)
    poisoned = make_engine(tiny_model(MODEL), drafter, 3)
    empty = poisoned.empty
    monkeypatch.setattr(poisoned, "empty", lambda: jax.tree.map(_poison_cache, empty()))
    found = run_all(poisoned, todo)
    assert [r.token_ids for r in found] == [r.token_ids for r in clean]
    if drafter == "itself":
        drafted = sum(r.metrics.drafted_tokens for r in found)
        assert sum(r.metrics.accepted_tokens for r in found) > 0.98 * drafted


def _poison_cache(x: jax.Array) -> jax.Array:
    return jnp.full_like(x, jnp.nan) if x.ndim == 5 else x


def test_metrics_add_up(engine: Engine):
    for result in run_all(engine, jobs()):
        metrics = result.metrics
        assert metrics.emitted_tokens == len(result.token_ids)
        # Every step emits what it accepts and one token more, unless a limit cuts it.
        assert metrics.emitted_tokens <= metrics.accepted_tokens + metrics.target_steps
        assert metrics.accepted_tokens <= metrics.drafted_tokens
        assert metrics.target_steps <= metrics.emitted_tokens
        assert metrics.time_to_first_token > 0
        assert len(metrics.drafted_by_position) == 7
        assert sum(metrics.drafted_by_position) == metrics.drafted_tokens
        assert list(metrics.drafted_by_position) == sorted(metrics.drafted_by_position)[::-1]


def test_progress_counts_every_token(engine: Engine):
    counted = []
    results = list(engine.run(jobs(5), counted.append))
    assert sum(counted) == sum(len(r.token_ids) for r in results)
