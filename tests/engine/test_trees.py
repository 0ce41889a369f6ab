"""Token trees: whatever tree is verified, the text is that of plain decoding."""

import dataclasses
import functools

import numpy as np
import pytest

from emsjax.engine.job import Finished, Job
from emsjax.engine.tree import MOST_GUESSES
from emsjax.sampling.choice import GREEDY, Choice, make_choice
from tests.engine.forest import Forest
from tests.engine.setup import jobs, make_engine, run_all, tiny_model
from tests.tiny import VOCAB_SIZE

FIRST, SLOTS, CAPACITY = 3, 3, 512
SAMPLED = make_choice(
    seed=5,
    temperature=0.8,
    logprobs=True,
    repetition_penalty=1.3,
    frequency_penalty=0.5,
    no_repeat_ngram_size=5,
)
CHOICES: dict[str, Choice] = {"greedy": GREEDY, "sampled": SAMPLED}


def todo(choice: str) -> list[Job]:
    """Returns jobs whose prompts begin with their number."""
    made = jobs(12, longest=120)
    return [
        dataclasses.replace(job, prompt=[FIRST + job.key, *job.prompt[1:]], choice=CHOICES[choice])
        for job in made
    ]


@functools.cache
def plain(name: str, choice: str) -> list[Finished]:
    return run_all(make_engine(tiny_model(name), "none", SLOTS), todo(choice))


def forest(name: str, choice: str, **options) -> Forest:
    texts = np.zeros((12, CAPACITY), np.int32)
    for text, result in zip(texts, plain(name, choice), strict=True):
        whole = [*result.job.prompt, *result.token_ids]
        text[: len(whole)] = whole
    return Forest(texts, FIRST, VOCAB_SIZE, **options)


def check(name: str, choice: str = "greedy", costs: float | None = None, **options) -> None:
    drafter = forest(name, choice, **options)
    engine = make_engine(tiny_model(name), drafter, SLOTS, costs=costs)
    results = run_all(engine, todo(choice))
    for result, expected in zip(results, plain(name, choice), strict=True):
        assert result.token_ids == expected.token_ids, f"job {result.job.key}"
        if expected.logprobs is not None:
            # Up to rounding: rows of other numbers are added up in another order.
            np.testing.assert_allclose(result.logprobs.chosen, expected.logprobs.chosen, atol=1e-4)
    metrics = [result.metrics for result in results]
    accepted = sum(m.accepted_tokens for m in metrics)
    assert 0.1 < accepted / sum(m.drafted_tokens for m in metrics) < 0.9
    steps = sum(m.target_steps for m in metrics)
    # With costs, guesses that seem unlikely are left out. The forest's confidence means nothing.
    assert sum(m.emitted_tokens for m in metrics) / steps > (1.6 if costs is None else 1.4)


def test_greedy():
    check("llama3")


def test_greedy_planned():
    check("llama3", costs=0.0, seed=1)


def test_sampled_with_penalties():
    check("llama3", "sampled", seed=2)


def test_a_window():
    """It counts the tokens of a row's path, not the rows before it in the cache."""
    check("mistral", seed=3)


@pytest.mark.slow
def test_as_many_guesses_as_there_are_bits():
    check("llama3", "sampled", seed=4, draft_length=MOST_GUESSES)
