"""Compares prompt lookup with a plain search through the text."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.drafters.ngram_index import hash_ngram
from emsjax.drafters.prompt_lookup import RIGHT_AFTER_MATCH
from emsjax.errors import UserError
from tests.engine.states import int32s, make_state

NUM_SLOTS, CACHE_LEN = 4, 16
# The index has room for this many tokens, so that few n-grams share an entry.
PLACES = 4096


def draft_by_hand(known: list[int], drafter: PromptLookup) -> list[int]:
    for length in range(drafter.max_ngram, drafter.min_ngram - 1, -1):
        suffix = known[-length:]
        for start in range(len(known) - length - 1, -1, -1):
            if known[start : start + length] == suffix:
                text = list(known)
                for source in range(start + length, start + length + drafter.draft_length):
                    text.append(text[source])
                return text[len(known) :]
    return []


@functools.cache
def program(drafter: PromptLookup) -> Any:
    return jax.jit(lambda state: drafter.propose(state, (), None))


def propose(drafter: PromptLookup, tokens: np.ndarray, lens: list[int], index: Any) -> Any:
    fields = {"tokens": tokens, "lens": int32s(lens), "live": np.full(NUM_SLOTS, True)}
    state = make_state(NUM_SLOTS, CACHE_LEN, drafter.draft_length, **fields)
    draft, index = jax.device_get(program(drafter)(state.replace(drafter=index)))
    assert draft.tokens.shape == draft.confidence.shape == (NUM_SLOTS, drafter.draft_length)
    return [draft.tokens[b, : draft.lens[b]].tolist() for b in range(NUM_SLOTS)], index


def collide(drafter: PromptLookup, tokens: np.ndarray, size: int) -> bool:
    """Whether two n-grams of a text share an entry of the index, so that one may be forgotten."""
    for order in range(drafter.min_ngram, drafter.max_ngram + 1):
        ends = np.broadcast_to(np.arange(order - 1, CACHE_LEN), (NUM_SLOTS, CACHE_LEN - order + 1))
        places = np.asarray(hash_ngram(tokens, int32s(ends), order, size))
        for row, hashes in zip(tokens, places, strict=True):
            grams = [tuple(row[i : i + order]) for i in range(len(hashes))]
            if len(set(zip(hashes.tolist(), grams, strict=True))) > len(set(hashes.tolist())):
                return True
    return False


def check(drafter: PromptLookup, tokens: np.ndarray, lens: list[int]) -> list:
    found, _ = propose(drafter, tokens, lens, drafter.init(NUM_SLOTS, PLACES))
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
]


@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
def test_any_text_is_searched_as_a_plain_search_does(drafter):
    token = st.integers(0, 2)
    row = st.lists(token, min_size=CACHE_LEN, max_size=CACHE_LEN)
    length = st.sampled_from((0, 1, 2, CACHE_LEN)) | st.integers(0, CACHE_LEN)

    @settings(max_examples=100)
    @given(
        st.lists(row, min_size=NUM_SLOTS, max_size=NUM_SLOTS).map(int32s),
        st.lists(length, min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    )
    def any_text(tokens: np.ndarray, lens: list[int]) -> None:
        assume(not collide(drafter, tokens, 2 * PLACES))
        check(drafter, tokens, lens)

    any_text()


@pytest.mark.parametrize("places", [4, PLACES])
def test_an_index_that_grows_with_the_text_equals_one_made_at_once(places):
    """This holds with far too few entries too, when most n-grams are forgotten."""
    drafter, rng = PromptLookup(4, 3, 1), np.random.default_rng(0)
    tokens = rng.integers(0, 3, (NUM_SLOTS, CACHE_LEN)).astype(np.int32)
    grown, lens = drafter.init(NUM_SLOTS, places), np.ones(NUM_SLOTS, np.int32)
    while (lens < CACHE_LEN).any():
        lens = np.minimum(lens + rng.integers(0, 4, NUM_SLOTS), CACHE_LEN)
        found, grown = propose(drafter, tokens, lens, grown)
        fresh = drafter.init(NUM_SLOTS, places)
        assert found == propose(drafter, tokens, lens, fresh)[0]
        for slot, guesses in enumerate(found):
            known = tokens[slot, : lens[slot]].tolist()
            assert is_copy(known, guesses), "the draft must have followed the same token before"


def is_copy(known: list[int], guesses: list[int]) -> bool:
    text = known + guesses
    starts = [at for at in range(1, len(known)) if known[at - 1] == known[-1]]
    return not guesses or any(text[at : at + len(guesses)] == guesses for at in starts)


def test_a_new_request_is_not_drafted_from_the_old_ones_text():
    drafter = PromptLookup(2, 2, 1)
    tokens, lens = texts([5, 6, 7, 5], [5, 6, 7, 5])
    found, index = propose(drafter, tokens, lens, drafter.init(NUM_SLOTS, PLACES))
    assert found[:2] == [[6, 7], [6, 7]]
    index = jax.device_get(drafter.admit(jax.device_put(index), int32s(0)))
    tokens[0, :4] = [9, 9, 8, 5]
    assert propose(drafter, tokens, lens, index)[0][:2] == [[], [6, 7]]


def texts(*rows: list[int]) -> tuple[np.ndarray, list[int]]:
    """Returns tokens and lengths; the rest is padded with a token that matches nothing."""
    rows = (*rows, *([[]] * (NUM_SLOTS - len(rows))))
    tokens = np.full((NUM_SLOTS, CACHE_LEN), 99, np.int32)
    for slot, row in enumerate(rows):
        tokens[slot, : len(row)] = row
    return tokens, [len(row) for row in rows]


def test_which_match_wins():
    drafter = PromptLookup(2, 3, 1)
    longest = [1, 2, 3, 50, 51, 3, 60, 61, 1, 2, 3]  # 1 2 3 wins over the later 3 alone.
    latest = [5, 70, 71, 5, 80, 81, 5]
    repeat = [7, 7]
    miss = [1, 2, 3, 4]
    found = check(drafter, *texts(longest, latest, repeat, miss))
    assert found == [[50, 51], [80, 81], [7, 7], []]


def test_generated_text_is_searched_like_the_prompt():
    drafter = PromptLookup(2, 3, 1)
    rows = texts([5, 6, 7, 8, 6], [9, 5, 6, 7, 5])
    assert check(drafter, *rows)[:2] == [[7, 8], [6, 7]]


def test_a_periodic_text_continues_past_its_end():
    assert check(PromptLookup(7, 2, 1), *texts([1, 2, 3, 1, 2]))[0] == [3, 1, 2, 3, 1, 2, 3]


def test_longer_matches_have_higher_confidence():
    tokens, lens = texts([1, 2, 9, 2], [3, 1, 2, 9, 3, 1, 2])
    drafter = PromptLookup(2, 3, 1)
    state = make_state(
        NUM_SLOTS, CACHE_LEN, 2, tokens=tokens, lens=int32s(lens), live=np.full(NUM_SLOTS, True)
    ).replace(drafter=drafter.init(NUM_SLOTS, PLACES))
    draft, _ = jax.device_get(program(drafter)(state))
    expected = [RIGHT_AFTER_MATCH[0:2], RIGHT_AFTER_MATCH[2:4]]
    np.testing.assert_array_equal(draft.confidence[:2], np.asarray(expected, np.float32))


def test_entries_past_the_known_text_are_ignored():
    tokens, lens = texts([1, 2, 3])
    tokens[0, 3:] = [3, 4, 3, 4] + [3] * (CACHE_LEN - 7)
    assert check(PromptLookup(7, 3, 1), tokens, lens)[0] == []


@pytest.mark.parametrize("sizes", [(0, 3, 1), (7, 0, 0), (7, 2, 3), (7, 3, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=r"do not fit; choose 1 <= min_ngram|is less than 1; use"):
        PromptLookup(*sizes)


def test_no_drafter_drafts_nothing():
    draft, after = NoDrafter().propose(make_state(NUM_SLOTS, CACHE_LEN, 0), (), None)
    assert draft.tokens.shape == (NUM_SLOTS, 0)
    assert draft.lens.tolist() == [0] * NUM_SLOTS
    assert after == ()
