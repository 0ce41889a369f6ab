"""Drawn jobs: every sampling option, stops, prompts longer than windows, more jobs than slots."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.sampling.adapt import BLANK, INDENTATION, LINE_BREAK
from emsjax.sampling.choice import Choice, make_choice
from tests.engine.setup import EOS, make_engine, tiny_model
from tests.ladders import two_rungs
from tests.tiny import VOCAB_SIZE

MODEL = "qwen2-mixed"  # some layers have windows that are shorter than the longest prompts
FIRST, JOBS, SLOTS, CAPACITY = 3, 6, 3, 256
TOKENS = st.integers(3, VOCAB_SIZE - 1)
CLASSES = np.random.default_rng(5).choice([0, BLANK, LINE_BREAK, INDENTATION], VOCAB_SIZE)


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def choices(draw: Any, prompt: int, logprobs: st.SearchStrategy[bool]) -> Choice:
    """Draws how the tokens after a prompt of so many are chosen."""
    soon = st.integers(prompt, prompt + 12)
    scheduled = st.lists(st.tuples(soon, TOKENS, st.booleans()), max_size=2)
    bias = draw(st.dictionaries(TOKENS, st.floats(-4, 4), max_size=3))
    biased = np.zeros(VOCAB_SIZE, np.float32)
    biased[list(bias)] = list(bias.values())
    return make_choice(
        seed=draw(st.integers(0, 2**64 - 1)),
        bias=biased if bias else None,
        words=draw(st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3)),
        scheduled=draw(scheduled),
        temperature=draw(one_of(0.0, 0.0, 0.6, 1.0, 1.5)),
        adapt_temperature=draw(one_of(None, None, 0.3, 1.2)),
        top_k=draw(one_of(0, 0, 5)),
        top_p=draw(one_of(1.0, 1.0, 0.8)),
        min_p=draw(one_of(0.0, 0.0, 0.1)),
        logprobs=draw(logprobs),
        min_len=draw(one_of(0, prompt + 3, prompt + 20)),
        repetition_penalty=draw(one_of(1.0, 1.3, 0.8)),
        frequency_penalty=draw(one_of(0.0, 0.7, -0.5)),
        presence_penalty=draw(one_of(0.0, 1.5, -1.0)),
        no_repeat_ngram_size=draw(one_of(0, 0, 1, 3)),
    )


@st.composite
def batches(draw: Any) -> list[tuple[Job, tuple[int, ...]]]:
    """Draws jobs whose prompts begin with their number, and tokens at which the host ends each."""
    drawn = []
    for key in range(JOBS):
        phrase, length = draw(st.lists(TOKENS, min_size=1, max_size=6)), draw(one_of(1, 5, 40, 90))
        prompt = [FIRST + key, *np.resize(phrase, length - 1).tolist()]
        stops = draw(one_of((), (EOS,), (EOS, *range(10, 20))))
        # The first job takes log-probabilities, so that one program decodes all batches.
        choice = draw(choices(length, st.booleans() if key else st.just(True)))
        job = Job(key, prompt, draw(st.integers(1, 30)), stops, choice)
        drawn.append((job, draw(one_of((), (), tuple(range(40, 50))))))
    return drawn


def until(ends: tuple[int, ...]) -> Callable[[Sequence[int]], int | None] | None:
    """Returns what ends a job at one of some tokens, as stop strings do."""

    def watch(tokens: Sequence[int]) -> int | None:
        return next((n for n, token in enumerate(tokens, 1) if token in ends), None)

    return watch if ends else None


def engine_for(drafter: str | Drafter, costs: float | None = None) -> Engine:
    """Makes an engine with few rungs, so that it compiles quickly."""
    options = {"capacity": CAPACITY, "costs": costs, "make": two_rungs}
    made = make_engine(tiny_model(MODEL), drafter, SLOTS, **options)
    made.use_token_classes(CLASSES)
    return made


def decode(engine: Engine, drawn: list[tuple[Job, tuple[int, ...]]]) -> list[Finished]:
    todo = [replace(job, watch=until(ends)) for job, ends in drawn]
    # There are calls that end no job, after which a host would look at what is new.
    found = {each.job.key: each for each in engine.run(todo) if each is not None}
    return [found[key] for key in range(JOBS)]


def assert_same(results: list[Finished], expected: list[Finished]) -> None:
    """Checks that texts and log-probabilities are those of plain decoding."""
    for found, plain in zip(results, expected, strict=True):
        assert found.token_ids == plain.token_ids, f"job {plain.job.key}"
        for how in ("cut", "failed", "stopped"):
            assert getattr(found, how) == getattr(plain, how)
        if plain.logprobs is not None:
            ours, theirs = found.logprobs, plain.logprobs
            np.testing.assert_allclose(ours.chosen, theirs.chosen, atol=1e-4)
            np.testing.assert_allclose(ours.top, theirs.top, atol=1e-4)
            assert (ours.rank == theirs.rank).mean() > 0.9, "near ties are few"
