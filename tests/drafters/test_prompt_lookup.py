"""Compares prompt lookup with a plain search through the text."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.drafters import NoDrafter, PromptLookup
from emsjax.drafters.matches import LONGEST_MATCH
from emsjax.drafters.prompt_lookup import RIGHT_AFTER_MATCH
from emsjax.engine.draft import ROOT
from emsjax.errors import UserError
from tests.engine.states import int32s, make_state

NUM_SLOTS, CACHE_LEN = 4, 24


class Match(NamedTuple):
    """An earlier occurrence of a text's last tokens, and what followed it."""

    length: int
    copy: list[int]


def matches_by_hand(known: list[int], drafter: PromptLookup) -> list[Match]:
    """Returns the best matches, best first."""
    found = []
    for end in range(len(known) - 1):
        length = 0
        while length < min(end + 1, LONGEST_MATCH) and known[end - length] == known[-1 - length]:
            length += 1
        if length >= drafter.min_ngram:
            text = list(known)
            for source in range(end + 1, end + 1 + drafter.draft_length):
                text.append(text[source])
            found.append((min(length, drafter.max_ngram), end, Match(length, text[len(known) :])))
    return [match for *_, match in sorted(found, reverse=True)][: drafter.matches]


def chain_by_hand(known: list[int], drafter: PromptLookup) -> list[int]:
    found = matches_by_hand(known, drafter)
    return found[0].copy if found else []


def right_after(length: int) -> float:
    return RIGHT_AFTER_MATCH[min(length, LONGEST_MATCH) - 1]


def tree_by_hand(known: list[int], drafter: PromptLookup) -> dict[tuple[int, ...], float]:
    """Returns the confidence in each path that follows a match."""
    found = matches_by_hand(known, drafter)
    tree = {}
    for match in found:
        for depth in range(drafter.draft_length):
            path = tuple(match.copy[: depth + 1])
            before = [m for m in found if tuple(m.copy[:depth]) == path[:-1]]
            odds = [right_after(m.length + depth) for m in before]
            odds = [right / (1 - right) for right in odds]
            agree = [m.copy[depth] == path[-1] for m in before]
            tree[path] = sum(np.multiply(odds, agree)) / (1 + sum(odds))
    return tree


@functools.cache
def program(drafter: PromptLookup) -> Any:
    return jax.jit(lambda state: drafter.propose(state, (), None)[0])


def propose(drafter: PromptLookup, tokens: np.ndarray, lens: list[int]) -> Any:
    fields = {"tokens": tokens, "lens": int32s(lens), "live": np.full(NUM_SLOTS, True)}
    state = make_state(NUM_SLOTS, CACHE_LEN, drafter.draft_length, **fields)
    draft = jax.device_get(program(drafter)(state))
    assert draft.tokens.shape == draft.confidence.shape == (NUM_SLOTS, drafter.draft_length)
    return draft


def check(drafter: PromptLookup, tokens: np.ndarray, lens: list[int]) -> list[list[int]]:
    draft = propose(drafter, tokens, lens)
    found = [draft.tokens[b, : draft.lens[b]].tolist() for b in range(NUM_SLOTS)]
    for slot in range(NUM_SLOTS):
        known = tokens[slot, : lens[slot]].tolist()
        assert found[slot] == chain_by_hand(known, drafter), (known, drafter)
    return found


def check_tree(drafter: PromptLookup, tokens: np.ndarray, lens: list[int]) -> None:
    draft = propose(drafter, tokens, lens)
    for slot in range(NUM_SLOTS):
        expected = tree_by_hand(tokens[slot, : lens[slot]].tolist(), drafter)
        survival = {
            path: np.prod([expected[path[: n + 1]] for n in range(len(path))]) for path in expected
        }
        paths: list[tuple[int, ...]] = []
        for place in range(draft.lens[slot]):
            parent = draft.parents[slot, place]
            above = () if parent == ROOT else paths[parent]
            paths.append((*above, int(draft.tokens[slot, place])))
            assert draft.confidence[slot, place] == pytest.approx(expected[paths[-1]], rel=1e-4)
        assert len(set(paths)) == len(paths) == min(len(expected), drafter.draft_length)
        best = sorted(survival.values(), reverse=True)[: len(paths)]
        assert [survival[path] for path in paths] == pytest.approx(best, rel=1e-4)


CHAINS = [PromptLookup(7, 3, 1), PromptLookup(1, 1, 1), PromptLookup(20, 5, 2)]
TREES = [PromptLookup(7, 16, 1, 8), PromptLookup(4, 2, 2, 3)]


@pytest.mark.parametrize("drafter", CHAINS + TREES, ids=str)
def test_any_text_is_searched_as_a_plain_search_does(drafter):
    token = st.integers(0, 2)
    row = st.lists(token, min_size=CACHE_LEN, max_size=CACHE_LEN)
    length = st.sampled_from((0, 1, 2, CACHE_LEN)) | st.integers(0, CACHE_LEN)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(row, min_size=NUM_SLOTS, max_size=NUM_SLOTS).map(int32s),
        st.lists(length, min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    )
    def any_text(tokens: np.ndarray, lens: list[int]) -> None:
        (check if drafter in CHAINS else check_tree)(drafter, tokens, lens)

    any_text()


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
    draft = propose(PromptLookup(2, 3, 1), tokens, lens)
    expected = [RIGHT_AFTER_MATCH[0:2], RIGHT_AFTER_MATCH[2:4]]
    np.testing.assert_array_equal(draft.confidence[:2], np.asarray(expected, np.float32))


def test_what_followed_more_often_is_likelier():
    """The later occurrence alone was followed by 8, the two before it by 9."""
    tokens, lens = texts([5, 9, 7, 5, 9, 6, 5, 8, 4, 5])
    draft = propose(PromptLookup(2, 3, 1, 4), tokens, lens)
    assert draft.tokens[0].tolist() == [9, 8]
    assert draft.parents[0].tolist() == [ROOT, ROOT]
    assert draft.confidence[0, 0] == pytest.approx(2 * draft.confidence[0, 1])


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
