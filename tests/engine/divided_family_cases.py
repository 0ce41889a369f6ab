"""Cases for `test_divided_families.py`: texts of every family on several devices."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from emsjax.engine.devices import shared_by
from emsjax.engine.job import Finished, Job
from emsjax.engine.ladder import Rung
from emsjax.sampling.choice import make_choice
from tests import tiny
from tests.engine.setup import check_greedy, jobs, make_engine, oracle_model, run_all

SLOTS, NUMBERS = 3, (2, 4, 8)
NAMES = tuple(tiny.TINY)
# On every number of devices, and with sampled texts: heads that all have keys of their own, that
# share two and that share one; norms over all heads and over each; experts, biases, sinks, and
# positions that are learnt.
ON_ALL = ("gpt2", "llama", "gemma", "olmo2", "stablelm", "gpt-oss")
# Eight devices need eight heads, experts of a width that they can divide, and so many tokens that
# each has some: it has blocks of 128.
VOCAB_SIZE = 7 * 128 + 50
WIDE = {
    "hidden_size": 64,
    "n_embd": 64,
    "num_attention_heads": 8,
    "n_head": 8,
    "moe_intermediate_size": 24,
}
# The last prompt has 19 tokens, and its third token is one that the last device has.
SAMPLED: tuple[dict[str, Any], ...] = (
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.8},
    {"top_k": 300, "repetition_penalty": 1.5},
    {"top_k": 20, "scheduled": ((21, VOCAB_SIZE - 5, True),)},
)


@cache
def wide(name: str) -> str:
    """Returns the name of a tiny model of the same family that eight devices can share."""
    model_type, settings = tiny.TINY[name]
    found = settings | {key: size for key, size in WIDE.items() if key in settings}
    found |= {"vocab_size": VOCAB_SIZE}
    if settings.get("word_embed_proj_dim") == tiny.OPT_SIZES["hidden_size"]:
        found |= {"word_embed_proj_dim": WIDE["hidden_size"]}
    tiny.TINY[f"{name}-wide"] = model_type, found
    return f"{name}-wide"


def jobs_of(name: str) -> list[Job]:
    """Returns jobs, of which the first is sampled or none, so that one program decodes them."""
    # Steps of eight devices take longer than those of one.
    todo = [replace(job, max_tokens=min(job.max_tokens, 20)) for job in jobs(8, longest=60)]
    if name in ON_ALL:
        for key, settings in enumerate(SAMPLED):
            choice = make_choice(seed=key, temperature=0.8, **settings)
            todo[2 * key] = replace(todo[2 * key], choice=choice)
    return todo


def one_rung(*_: Any, **__: Any) -> tuple[Rung, ...]:
    """Returns one rung for prompts and drafts alike, which is all that must be compiled."""
    return (Rung(32, 32),)


def results_of(name: str, number: int) -> list[Finished]:
    devices = shared_by(number)
    model = oracle_model(wide(name), devices)
    options = {"capacity": 256, "devices": devices, "make": one_rung}
    return run_all(make_engine(model, "prompt-lookup", SLOTS, **options), jobs_of(name))


def texts_of(results: list[Finished]) -> list[tuple[int, ...]]:
    return [each.token_ids for each in results]


def check_greedy_ones(name: str, results: list[Finished]) -> None:
    check_greedy(tiny.oracle(wide(name)), [each for each in results if each.job.choice.greedy])


@cache
def texts_of_one_device(name: str) -> list[tuple[int, ...]]:
    """Returns the texts, after comparing the greedy ones with those of `transformers`."""
    results = results_of(name, 1)
    check_greedy_ones(name, results)
    return texts_of(results)


def cases() -> Iterator[tuple[str, int]]:
    """Yields each family with a number of devices, and some with every number."""
    for at, name in enumerate(NAMES):
        for number in NUMBERS if name in ON_ALL else NUMBERS[at % 3 :][:1]:
            yield name, number


@pytest.mark.parametrize(("name", "number"), list(cases()))
def test_texts_are_those_of_one_device(name: str, number: int):
    """Through slots that are refilled, with drafts."""
    results = results_of(name, number)
    if name in ON_ALL:
        assert texts_of(results) == texts_of_one_device(name)
    else:
        # `transformers` says what one device writes, in half of the time.
        check_greedy_ones(name, results)
    assert sum(each.metrics.drafted_tokens for each in results) > 0
