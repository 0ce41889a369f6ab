"""The tokens of a seed depend only on the prompt and the model."""

from dataclasses import replace

import numpy as np
import pytest

from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import make_ladder
from emsjax.sampling.choice import GREEDY, Choice, make_choice
from tests.engine.setup import jobs, make_engine, run_all, tiny_model
from tests.sampling.enumerated import PROMPT, Liar, Rule
from tests.sampling.enumerated import make_engine as make_small_engine

MODEL = "llama"


def choices(count: int) -> list[Choice]:
    """Returns choices of all kinds, greedy ones among them."""
    bias = np.zeros(101, np.float32)
    bias[7] = 3.0
    kinds = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0.9, "bias": bias, "logprobs": True},
        {"presence_penalty": 1.0},
    ]
    made = [make_choice(seed=n + 2**40, **kinds[n % len(kinds)]) for n in range(count)]
    return [GREEDY if n % 7 == 6 else choice for n, choice in enumerate(made)]


def sampled_jobs(count: int, longest: int = 60) -> list[Job]:
    todo = zip(jobs(count, longest), choices(count), strict=True)
    return [replace(job, choice=choice) for job, choice in todo]


@pytest.fixture(scope="module")
def alone() -> list[tuple[int, ...]]:
    plain = make_engine(tiny_model(MODEL), "none", 1, exact=True)
    return [run_all(plain, [replace(job, key=0)])[0].token_ids for job in sampled_jobs(14)]


@pytest.mark.parametrize(
    ("drafter", "num_slots"),
    [
        ("none", 3),
        ("prompt-lookup", 3),
        ("combined", 8),
        pytest.param("draft-model", 8, marks=pytest.mark.slow),
    ],
)
def test_neighbours_order_slot_and_batch_size_change_nothing(
    drafter: str, num_slots: int, alone: list
):
    todo = sampled_jobs(14)
    engine = make_engine(tiny_model(MODEL), drafter, num_slots, exact=True)
    assert [r.token_ids for r in run_all(engine, todo)] == alone
    backwards = {r.job.key: r.token_ids for r in engine.run(todo[::-1])}
    assert [backwards[job.key] for job in todo] == alone
    some = [todo[n] for n in (3, 11, 1)]
    assert {r.job.key: r.token_ids for r in engine.run(some)} == {
        job.key: alone[job.key] for job in some
    }


def test_a_drafter_that_lies_changes_nothing(alone: list):
    drafter: Drafter = Liar(guesses=(5, -3))
    ladder = make_ladder(3, drafter.draft_length, exact=True)
    engine = Engine(tiny_model(MODEL), drafter, ladder, num_slots=3, capacity=512)
    assert [r.token_ids for r in run_all(engine, sampled_jobs(14))] == alone


def test_other_seeds_give_other_tokens():
    engine = make_small_engine(Liar(), 8)
    first = [make_choice(seed=seed, temperature=1.0) for seed in range(64)]
    index = [make_choice(seed=0, index=n, temperature=1.0) for n in range(64)]
    high = [make_choice(seed=seed << 32, temperature=1.0) for seed in range(1, 65)]
    for kind in (first, index, high):
        results = engine.run(Job(n, PROMPT, 20, choice=c) for n, c in enumerate(kind))
        assert len({r.token_ids for r in results}) == 64


def test_a_greedy_job_among_sampling_ones_is_greedy():
    engine, rule = make_small_engine(Liar(), 2), Rule(temperature=1.0)
    (plain,) = engine.run([Job(0, PROMPT, 20)])
    todo = [Job(n, PROMPT, 20, choice=rule.choice(n) if n % 2 else GREEDY) for n in range(10)]
    for result in engine.run(todo):
        if result.job.choice is GREEDY:
            assert result.token_ids == plain.token_ids
    assert engine._idle.sampling is None
