"""Prompt lookup against a search written as a person would do it."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.drafters import NoDrafter, PromptLookup, make_drafter
from emsjax.errors import UserError
from tests.units.states import int32s, make_state

NUM_SLOTS, CACHE_LEN = 4, 16


def draft_by_hand(known: list[int], drafter: PromptLookup) -> list[int]:
    for length in range(drafter.max_ngram, drafter.min_ngram - 1, -1):
        suffix = known[-length:]
        for start in range(len(known) - length - 1, -1, -1):
            if known[start : start + length] == suffix:
                text = list(known)
                count = drafter.draft_length
                if length < drafter.max_ngram:
                    count = min(count, drafter.short_draft)
                for source in range(start + length, start + length + count):
                    text.append(text[source])
                return text[len(known) :]
    return []


@functools.cache
def program(drafter: PromptLookup) -> Any:
    return jax.jit(lambda state: drafter.propose(state)[0])


def check(drafter: PromptLookup, tokens: np.ndarray, lens: list[int], prompt_lens: Any = 0) -> list:
    state = make_state(
        NUM_SLOTS,
        CACHE_LEN,
        drafter.draft_length,
        tokens=tokens,
        lens=int32s(lens),
        prompt_lens=np.broadcast_to(int32s(prompt_lens), (NUM_SLOTS,)),
    )
    draft = jax.device_get(program(drafter)(state))
    assert draft.tokens.shape == (NUM_SLOTS, drafter.draft_length)
    found = [draft.tokens[b, : draft.lens[b]].tolist() for b in range(NUM_SLOTS)]
    for slot in range(NUM_SLOTS):
        known = tokens[slot, : lens[slot]].tolist()
        assert found[slot] == draft_by_hand(known, drafter), (known, drafter)
    return found


DRAFTERS = [
    PromptLookup(7, 3, 1),
    PromptLookup(4, 2, 2),
    PromptLookup(1, 1, 1),
    PromptLookup(5, 4, 2),
    PromptLookup(20, 5, 1),
    PromptLookup(7, 3, 1, short_draft=7),
]


@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
def test_any_text_is_searched_as_by_hand(drafter):
    token = st.integers(0, 2)
    row = st.lists(token, min_size=CACHE_LEN, max_size=CACHE_LEN)
    length = st.sampled_from((0, 1, 2, CACHE_LEN)) | st.integers(0, CACHE_LEN)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(row, min_size=NUM_SLOTS, max_size=NUM_SLOTS).map(int32s),
        st.lists(length, min_size=NUM_SLOTS, max_size=NUM_SLOTS),
        st.integers(0, CACHE_LEN),
    )
    def any_text(tokens: np.ndarray, lens: list[int], prompt_len: int) -> None:
        check(drafter, tokens, lens, prompt_len)

    any_text()


def texts(*rows: list[int]) -> tuple[np.ndarray, list[int]]:
    """Tokens and lengths, filled up with a token that continues nothing."""
    rows = (*rows, *([[]] * (NUM_SLOTS - len(rows))))
    tokens = np.full((NUM_SLOTS, CACHE_LEN), 99, np.int32)
    for slot, row in enumerate(rows):
        tokens[slot, : len(row)] = row
    return tokens, [len(row) for row in rows]


def test_which_match_wins():
    drafter = PromptLookup(2, 3, 1)
    longest = [1, 2, 3, 50, 51, 3, 60, 61, 1, 2, 3]  # 1 2 3 before the later 3 alone
    latest = [5, 70, 71, 5, 80, 81, 5]
    repeat = [7, 7]
    miss = [1, 2, 3, 4]
    found = check(drafter, *texts(longest, latest, repeat, miss))
    assert found == [[50, 51], [80, 81], [7, 7], []]


def test_generated_text_is_searched_like_the_prompt():
    drafter = PromptLookup(2, 3, 1)
    rows = texts([5, 6, 7, 8, 6], [9, 5, 6, 7, 5])
    assert check(drafter, *rows, prompt_lens=[4, 1, 0, 0])[:2] == [[7, 8], [6, 7]]


def test_a_period_goes_on_past_the_end():
    assert check(PromptLookup(7, 2, 1), *texts([1, 2, 3, 1, 2]))[0] == [3, 1, 2, 3, 1, 2, 3]


def test_a_short_match_earns_a_short_draft():
    rows = texts([1, 2, 3, 4, 5, 6, 1, 2], [1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert check(PromptLookup(5, 3, 1), *rows)[:2] == [[3, 4, 5], [4, 5, 6, 1, 2]]


def test_tokens_behind_the_known_ones_are_not_looked_at():
    tokens, lens = texts([1, 2, 3])
    tokens[0, 3:] = [3, 4, 3, 4] + [3] * (CACHE_LEN - 7)
    assert check(PromptLookup(7, 3, 1), tokens, lens)[0] == []


@pytest.mark.parametrize("sizes", [(0, 3, 1), (7, 0, 0), (7, 2, 3), (7, 3, 0)])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(UserError):
        PromptLookup(*sizes)


def test_drafters_by_name():
    assert make_drafter("none", 7, 3, 1) == NoDrafter()
    assert make_drafter("prompt-lookup", 5, 4, 2) == PromptLookup(5, 4, 2)
    with pytest.raises(UserError, match="'medusa' is unknown; there is prompt-lookup, none"):
        make_drafter("medusa", 7, 3, 1)


def test_no_drafter_drafts_nothing():
    draft, after = NoDrafter().propose(make_state(NUM_SLOTS, CACHE_LEN, 0))
    assert draft.tokens.shape == (NUM_SLOTS, 0)
    assert draft.lens.tolist() == [0] * NUM_SLOTS
    assert after == ()
