"""Traces add up to the metrics, and show what was really drafted."""

import functools
from collections import Counter
from dataclasses import dataclass, replace

import jax.numpy as jnp
import pytest

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.sampling.choice import make_choice
from tests.engine.setup import jobs, make_engine, run_all, tiny_model
from tests.tiny import VOCAB_SIZE

MODEL = "llama"


@dataclass(frozen=True)
class Liar(Stateless):
    """Drafts by position alone. Now and then a draft token is right by chance."""

    draft_length: int = 3

    def propose(self, state, weights, worth):
        del weights, worth
        places = state.lens[:, None] + jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        return Draft(lie(places), jnp.full_like(state.lens, self.draft_length)), ()


def lie(place):
    return (7 * place) % VOCAB_SIZE


@functools.cache
def traced(drafter, num_slots: int = 3, **options) -> Engine:
    """Returns a cached engine with traces, so that each program is compiled once."""
    return make_engine(tiny_model(MODEL), drafter, num_slots, trace=True, **options)


def check_sums(result: Finished) -> None:
    trace, metrics = result.trace, result.metrics
    assert len(trace.sources) == metrics.emitted_tokens == len(result.token_ids)
    assert sum(len(step.drafted) for step in trace.steps) == metrics.drafted_tokens
    assert sum(step.accepted for step in trace.steps) == metrics.accepted_tokens
    for place, (drafted, accepted) in enumerate(
        zip(metrics.drafted_by_position, metrics.accepted_by_position, strict=True)
    ):
        assert sum(len(step.drafted) > place for step in trace.steps) == drafted
        assert sum(step.accepted > place for step in trace.steps) == accepted
    assert sum(step.emitted > 0 for step in trace.steps) == metrics.target_steps
    assert trace.prefill_steps == metrics.prefill_steps
    counts = Counter(trace.sources)
    assert counts["plain"] + counts["bonus"] == sum(step.own for step in trace.steps)
    if not result.cut:
        assert counts["drafted"] == metrics.accepted_tokens


def check_text(result: Finished) -> None:
    """Checks that accepted draft tokens are in the output, and the first rejected one is not."""
    place = 0
    for step in result.trace.steps:
        emitted = result.token_ids[place : place + step.emitted]
        kept = min(step.accepted, step.emitted)
        assert emitted[:kept] == step.drafted[:kept]
        if step.rejected:
            assert emitted[-1] != step.rejected[0]
        place += step.emitted
    assert place == len(result.token_ids)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("none", "draft-model", "combined")]


@pytest.mark.parametrize("drafter", ["prompt-lookup", "itself", Liar(), *SLOW], ids=str)
def test_traces_add_up_to_the_metrics(drafter):
    seen = set()
    for result in run_all(traced(drafter), jobs(14)):
        check_sums(result)
        check_text(result)
        seen.update(result.trace.sources)
    if drafter == "none":
        assert seen == {"plain"}
    else:
        assert seen >= {"plain", "drafted"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "unpad-kv", "unpad-input"])
def test_padding_does_not_count_as_drafted(method: str):
    for result in run_all(traced("prompt-lookup", method=method), jobs(8)):
        check_sums(result)
        check_text(result)


@pytest.mark.slow
def test_with_a_planner_only_what_was_verified_counts_as_drafted():
    for result in run_all(traced("prompt-lookup", costs=0.5), jobs(8)):
        check_sums(result)


@pytest.mark.slow
def test_sampled_tokens_are_traced_too():
    todo = [
        replace(job, choice=make_choice(seed=job.key, index=0, temperature=1.0)) for job in jobs(10)
    ]
    for result in run_all(traced("itself"), todo):
        check_sums(result)
        check_text(result)


def test_the_trace_shows_a_lying_drafters_tokens():
    accepted = 0
    for result in run_all(traced(Liar()), jobs(12)):
        place = len(result.job.prompt)
        limit = place + result.job.max_tokens
        for number, step in enumerate(result.trace.steps):
            # The first step reads the prompt and has no draft, unless the prompt is one token. A
            # draft leaves room for the bonus token.
            most = 0 if number == 0 and place > 1 else min(3, limit - place - 1)
            assert step.drafted == tuple(lie(place + j) for j in range(most))
            place += step.emitted
            accepted += step.accepted
    assert accepted, "no lie was right by chance, so no accepted token was checked"


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 8, 9, 10])
def test_a_limit_among_accepted_tokens(max_tokens: int):
    todo = [Job(i, [5, 6, 7] * 20, max_tokens) for i in range(4)]
    for result in run_all(traced("itself"), todo):
        check_sums(result)
        assert len(result.trace.sources) == max_tokens


def test_a_stop_token_among_accepted_ones():
    engine, cut = traced("itself"), 0
    (free,) = run_all(engine, [Job(0, [5, 6, 7] * 20, 40)])
    for token in dict.fromkeys(free.token_ids):
        (result,) = run_all(engine, [Job(0, [5, 6, 7] * 20, 40, (token,))])
        check_sums(result)
        check_text(result)
        last = result.trace.steps[-1]
        cut += not last.own and len(last.drafted) > last.accepted
    assert cut, "no draft reached past a stop token"


def test_a_watch_that_cuts():
    """Steps made before the host noticed count as drafted and accepted, but emit nothing."""
    late_steps = 0
    for kept in (1, 3, 6, 11):
        left = kept

        def watch(tokens):
            nonlocal left
            left -= len(tokens)
            return None if left > 0 else len(tokens) + left

        found = traced("itself").run([Job(0, [5, 6, 7] * 20, 60, watch=watch)])
        (result,) = (result for result in found if result is not None)
        assert result.cut
        assert len(result.token_ids) == kept
        check_sums(result)
        check_text(result)
        late_steps += sum(step.emitted == 0 for step in result.trace.steps)
    assert late_steps


def test_requests_follow_each_other_in_their_slots_without_a_gap():
    """The host's count of the batch's steps agrees with the count of each request."""
    results = run_all(traced("prompt-lookup"), jobs(20))
    by_slot: dict[int, list[Finished]] = {slot: [] for slot in range(3)}
    for result in sorted(results, key=lambda result: result.trace.first_step):
        by_slot[result.trace.slot].append(result)
    for in_slot in by_slot.values():
        assert len(in_slot) > 3
        step, time = 0, 0.0
        for result in in_slot:
            trace = result.trace
            assert trace.first_step == step
            step += trace.prefill_steps + len(trace.steps)
            assert time <= trace.started <= trace.first_token <= trace.finished
            time = trace.finished
    assert len({result.trace.run_began for result in results}) == 1


def test_outputs_that_share_a_prompt_say_so():
    group = object()
    todo = [Job(n, [5, 6, 7] * 60, 6, group=group) for n in range(4)]
    traces = [result.trace for result in run_all(traced("prompt-lookup"), todo)]
    assert [trace.prompt_shared for trace in traces] == [False, True, True, True]
    assert [trace.prefill_steps > 0 for trace in traces] == [True, False, False, False]


def test_without_traces_neither_state_nor_program_has_a_record():
    engine = make_engine(tiny_model(MODEL), "prompt-lookup", 3)
    with_trace = traced("prompt-lookup")
    state = engine.empty()
    assert state.drafts is None
    assert with_trace.empty().drafts.shape == (3, 7, 512)
    record = "tensor<3x7x512xi32>"
    assert record not in engine.lower().as_text()
    assert record in with_trace.lower().as_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_compile_cache")
def test_traces_need_memory_for_the_record_and_a_copy_of_the_tokens_only():
    plain, with_trace = (
        make_engine(tiny_model(MODEL), "prompt-lookup", 8, capacity=2048, trace=trace)
        .lower()
        .compile()
        .memory_analysis()
        for trace in (False, True)
    )
    tokens = 8 * 2048 * 4
    record = 7 * tokens
    assert with_trace.alias_size_in_bytes - plain.alias_size_in_bytes == record
    bookkeeping = 1024  # The compiler keeps a few tuples of pointers.
    assert with_trace.temp_size_in_bytes - plain.temp_size_in_bytes <= tokens + bookkeeping
