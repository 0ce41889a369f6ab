"""Token trees under every sampling option: text and log-probabilities are those of plain decoding.

All options of a batch are drawn together, so that they meet windows, stops and refilled slots.
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.engine import Engine
from tests.engine.drawn import (
    CAPACITY,
    FIRST,
    JOBS,
    assert_same,
    batches,
    decode,
    engine_for,
)
from tests.engine.forest import Forest
from tests.tiny import VOCAB_SIZE


@functools.cache
def engine(trees: bool) -> Engine:
    nothing = Forest(np.zeros((JOBS, CAPACITY), np.int32), FIRST, VOCAB_SIZE)
    return engine_for(nothing if trees else "none")


@pytest.mark.slow
def test_whatever_is_asked_for():
    accepted = 0

    @settings(max_examples=20, derandomize=True)
    @given(batches(), st.integers(0, 1 << 20))
    def check(drawn: list, seed: int) -> None:
        nonlocal accepted
        expected = decode(engine(False), drawn)
        texts = np.zeros((JOBS, CAPACITY), np.int32)
        for text, result in zip(texts, expected, strict=True):
            whole = [*result.job.prompt, *result.token_ids]
            text[: len(whole)] = whole
        engine(True).use_drafter(Forest(texts, FIRST, VOCAB_SIZE, seed))
        results = decode(engine(True), drawn)
        assert_same(results, expected)
        accepted += sum(result.metrics.accepted_tokens for result in results)

    check()
    assert accepted > 200
