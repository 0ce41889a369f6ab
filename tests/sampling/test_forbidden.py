"""What a row's own text forbids or forces, against loops over the text of each row."""

from typing import Any

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emsjax.sampling.adjust import adjust
from emsjax.sampling.choice import make_choice
from emsjax.sampling.rows import NO_TOKEN, Rows, tokens_before
from emsjax.sampling.state import SamplingState, empty_sampling
from tests.engine.states import int32s, make_state

NUM_SLOTS, CAPACITY, VOCAB, K, ROWS = 3, 16, 4, 3, 24


@jax.jit
def ours(logits: jax.Array, rows: Rows, state: Any) -> jax.Array:
    settings = jax.tree.map(lambda x: x[rows.slots], state.sampling.settings)
    return adjust(logits, rows, settings, state, state.sampling)


def sampling_of(choices: list) -> SamplingState:
    """The state of slots with these choices."""
    sampling = empty_sampling(NUM_SLOTS, CAPACITY, np.zeros(VOCAB, np.uint8))
    given = jax.tree.map(lambda *each: np.stack(each), *choices)
    return sampling.replace(settings=given.settings, words=given.words, scheduled=given.scheduled)


def random_rows(rng: np.random.Generator) -> tuple[Any, Rows, list[tuple[int, list[int]]]]:
    """Returns texts, rows of several branches of draft tokens, and slot and prefix of each row."""
    tokens = int32s(rng.integers(0, VOCAB, (NUM_SLOTS, CAPACITY)))
    lens = int32s(rng.integers(1, CAPACITY - K + 1, NUM_SLOTS))
    slots = int32s(rng.integers(0, NUM_SLOTS, ROWS))
    depths = rng.integers(0, K + 1, ROWS)
    drafts = rng.integers(0, VOCAB, (ROWS, K))
    prefixes = [
        tokens[slot, : lens[slot]].tolist() + draft[:depth].tolist()
        for slot, draft, depth in zip(slots, drafts, depths, strict=True)
    ]
    rows = Rows(
        slots=slots,
        positions=int32s([len(prefix) - 1 for prefix in prefixes]),
        tokens=int32s([prefix[-1] for prefix in prefixes]),
        before=int32s([prefix[-2] if len(prefix) > 1 else 0 for prefix in prefixes]),
        path=int32s(np.where(np.arange(K) < depths[:, None], drafts, NO_TOKEN)),
    )
    state = make_state(NUM_SLOTS, CAPACITY, K, tokens=tokens, lens=lens, live=[True] * NUM_SLOTS)
    return state, rows, list(zip(slots.tolist(), prefixes, strict=True))


def repeating(prefix: list[int], n: int) -> set[int]:
    """The tokens after which the last n tokens were there before."""
    found = set()
    for token in range(VOCAB):
        text = [*prefix, token]
        ngrams = [text[at : at + n] for at in range(len(text) - n + 1)] if n else []
        if ngrams and ngrams[-1] in ngrams[:-1]:
            found.add(token)
    return found


def completing(prefix: list[int], words: list[list[int]]) -> set[int]:
    """The tokens after which the text ends in one of the words."""
    return {
        word[-1]
        for word in words
        if len(word) <= len(prefix) + 1 and [*prefix, word[-1]][-len(word) :] == word
    }


def adjusted(state: Any, rows: Rows, choices: list, rng: np.random.Generator) -> tuple[Any, Any]:
    logits = rng.normal(size=(ROWS, VOCAB)).astype(np.float32)
    found = np.asarray(ours(logits, rows, state.replace(sampling=sampling_of(choices))))
    return logits, found


WORDS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=8), max_size=5)
SLOTS = st.tuples(st.integers(0, 5), WORDS)


@given(st.lists(SLOTS, min_size=NUM_SLOTS, max_size=NUM_SLOTS), st.integers(0, 2**32))
def test_repetitions_and_words_against_a_loop_over_the_prefix(slots: list, seed: int):
    rng = np.random.default_rng(seed)
    state, rows, prefixes = random_rows(rng)
    choices = [make_choice(no_repeat_ngram_size=n, words=words) for n, words in slots]
    logits, found = adjusted(state, rows, choices, rng)
    for (slot, prefix), before, after in zip(prefixes, logits, found, strict=True):
        n, words = slots[slot]
        banned = list(repeating(prefix, n) | completing(prefix, words))
        before[banned] = -np.inf
        np.testing.assert_array_equal(after, before)


def test_words_that_draft_tokens_begin():
    """A word may begin in the known text, or in draft tokens alone."""
    rng = np.random.default_rng(0)
    state, rows, prefixes = random_rows(rng)
    whole = [prefix[-3:] for _, prefix in prefixes if len(prefix) > 3]
    choices = [make_choice(words=[[*word, 1] for word in whole])] * NUM_SLOTS
    _, found = adjusted(state, rows, choices, rng)
    for (_, prefix), row in zip(prefixes, found, strict=True):
        assert (row[1] == -np.inf) == (prefix[-3:] in whole)


def test_slots_without_a_request_do_not_count():
    rng = np.random.default_rng(1)
    state, rows, _ = random_rows(rng)
    state = state.replace(live=np.zeros(NUM_SLOTS, np.bool))
    choices = [make_choice(no_repeat_ngram_size=1, words=[[0, 1]])] * NUM_SLOTS
    logits, found = adjusted(state, rows, choices, rng)
    np.testing.assert_array_equal(found, logits)


ENTRY = st.tuples(st.integers(1, CAPACITY), st.integers(0, VOCAB - 1), st.booleans())
SCHEDULES = st.lists(st.lists(ENTRY, max_size=6), min_size=NUM_SLOTS, max_size=NUM_SLOTS)


@given(SCHEDULES, st.integers(0, 2**32))
def test_schedules(schedules: list, seed: int):
    rng = np.random.default_rng(seed)
    state, rows, prefixes = random_rows(rng)
    choices = [make_choice(scheduled=entries) for entries in schedules]
    logits, found = adjusted(state, rows, choices, rng)
    for (slot, prefix), before, after in zip(prefixes, logits, found, strict=True):
        due = [entry for entry in schedules[slot] if entry[0] == len(prefix)]
        forced = [token for _, token, is_forced in due if is_forced]
        if forced:
            before[:] = -np.inf
            before[forced] = 0
        before[[token for _, token, is_forced in due if not is_forced]] = -np.inf
        np.testing.assert_array_equal(after, before)


def test_logits_that_are_not_numbers_stay_so():
    rng = np.random.default_rng(2)
    state, rows, _ = random_rows(rng)
    entries = [(length, 0, True) for length in range(1, CAPACITY + 1)]
    for given_ in ({"no_repeat_ngram_size": 1}, {"words": [[0, 1]]}, {"scheduled": entries}):
        sampling = sampling_of([make_choice(**given_)] * NUM_SLOTS)
        logits = np.full((ROWS, VOCAB), np.nan, np.float32)
        found = np.asarray(ours(logits, rows, state.replace(sampling=sampling)))
        assert np.isnan(found).any(axis=1).all()


def test_the_tokens_before_a_row():
    state, rows, prefixes = random_rows(np.random.default_rng(3))
    found = np.asarray(tokens_before(rows, state, CAPACITY))
    for (_, prefix), row in zip(prefixes, found, strict=True):
        padding = [NO_TOKEN] * (CAPACITY - len(prefix))
        assert row.tolist() == [*prefix[::-1], *padding]
