"""Greedy output is token for token that of `transformers`, whatever the batch and the drafter."""

import pytest

from tests.engine.setup import EOS, expected, jobs, make_engine, oracle_model, run_all
from tests.tiny import TINY

pytest.importorskip("torch")


def check(name: str, drafter: str, num_slots: int) -> None:
    todo = jobs()
    results = run_all(make_engine(oracle_model(name), drafter, num_slots), todo)
    for job, result in zip(todo, results, strict=True):
        alone = expected(name, tuple(job.prompt), 64, EOS)[: job.max_tokens]
        assert list(result.token_ids) == alone, f"prompt {job.key} of {len(job.prompt)} tokens"
    accepted = sum(result.metrics.accepted_tokens for result in results)
    assert (accepted > 0) == (drafter != "none")


@pytest.mark.parametrize("name", TINY)
def test_20_prompts_through_3_slots_with_prompt_lookup(name: str):
    check(name, "prompt-lookup", 3)


@pytest.mark.parametrize("num_slots", [1, 8])
def test_other_batch_sizes(num_slots: int):
    check("llama3", "prompt-lookup", num_slots)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [1, 3, 8])
@pytest.mark.parametrize("drafter", ["none", "prompt-lookup"])
@pytest.mark.parametrize("name", TINY)
def test_every_family_drafter_and_batch_size(name: str, drafter: str, num_slots: int):
    check(name, drafter, num_slots)
