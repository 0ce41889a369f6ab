"""Greedy output equals that of `transformers` token for token, with any batch and drafter."""

import pytest

from emsjax.engine.job import Finished
from tests.engine.setup import check_greedy, jobs, make_engine, oracle_model, run_all
from tests.tiny import TINY, oracle

pytest.importorskip("torch")


def check(name: str, drafter: str, num_slots: int, costs: float | None = None) -> list[Finished]:
    results = run_all(make_engine(oracle_model(name), drafter, num_slots, costs=costs), jobs())
    check_greedy(oracle(name), results)
    return results


def accepted_share(results: list[Finished]) -> float:
    drafted = sum(result.metrics.drafted_tokens for result in results)
    return sum(result.metrics.accepted_tokens for result in results) / drafted


# One family with learned positions, one with windows on some layers, and one with experts in some.
# `divided_family_cases` has fewer prompts for all.
@pytest.mark.parametrize("name", ["opt", "qwen2-mixed", "qwen3-moe-mixed"])
def test_20_prompts_through_3_slots_with_prompt_lookup(name: str):
    assert accepted_share(check(name, "prompt-lookup", 3)) > 0


@pytest.mark.parametrize("num_slots", [1, 8])
def test_other_batch_sizes(num_slots: int):
    check("llama3", "prompt-lookup", num_slots)


@pytest.mark.parametrize(
    ("drafter", "costs"),
    [("draft-model", 0.5), ("recurrent", None), ("combined", 0.5), ("tree", 0.5)],
)
def test_drafters_that_compute(drafter: str, costs: float | None):
    """The cases with costs use the planner, which drafts and verifies less."""
    assert accepted_share(check("llama3", drafter, 3, costs)) < 1


def test_a_model_that_drafts_for_itself_is_always_right():
    """That holds after a fully accepted draft too, which leaves its cache one token short."""
    results = check("llama3", "itself", 3)
    assert accepted_share(results) > 0.99  # Not 1, because texts end inside drafts.
    steps = sum(result.metrics.target_steps for result in results)
    emitted = sum(result.metrics.emitted_tokens for result in results)
    assert emitted / steps > 3  # At most 5 are possible, and the prompt is read first.


@pytest.mark.parametrize("drafter", ["itself", "recurrent", "combined"])
def test_drafting_that_costs_too_much_is_not_done(drafter: str):
    results = check("llama3", drafter, 3, costs=1e6)
    drafted = [result.metrics.drafted_tokens for result in results]
    assert (sum(drafted) == 0) == (drafter != "combined")


DRAFTING = (
    ("none", 3),
    ("draft-model", 3),
    ("prompt-lookup", 8),
    ("combined", 8),
    ("prompt-lookup", 1),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "drafter", "num_slots"),
    # One per family, so that every kind of drafting meets several families.
    [(name, *DRAFTING[at % len(DRAFTING)]) for at, name in enumerate(TINY)],
)
def test_every_family_every_drafter_and_every_batch_size(name: str, drafter: str, num_slots: int):
    check(name, drafter, num_slots, costs=0.5)
