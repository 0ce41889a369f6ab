"""Compares `pack` with packing row by row."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emsjax.engine.packing import NO_PARENT, Guesses, pack
from tests.engine.states import int32s

NUM_SLOTS, CACHE_LEN, CAPACITY, K = 4, 20, 16, 3

packing = jax.jit(
    lambda tokens, starts, q_lens, guesses: pack(tokens, starts, q_lens, CAPACITY, guesses)
)


@st.composite
def rows(draw):
    """Draws where each slot starts and how many rows it has, at most CAPACITY in total."""
    starts, q_lens, left = [], [], CAPACITY
    for _ in range(NUM_SLOTS):
        q_lens.append(draw(st.sampled_from((0, min(1, left), left)) | st.integers(0, left)))
        starts.append(draw(st.integers(0, CACHE_LEN - q_lens[-1])))
        left -= q_lens[-1]
    return starts, q_lens


def check(starts: list[int], q_lens: list[int], tokens: np.ndarray, guesses: Guesses | None):
    """Checks the packed rows; `tokens` [B, S] are the tokens expected at each position."""
    known = tokens.copy()
    if guesses is not None:
        # Entries past the known text must never be read. -7 is no token.
        known[np.arange(CACHE_LEN)[None] >= guesses.start[:, None]] = -7
    batch = jax.device_get(packing(known, int32s(starts), int32s(q_lens), guesses))
    expected, parents = [], []
    for slot, (start, q_len) in enumerate(zip(starts, q_lens, strict=True)):
        for position in range(start, start + q_len):
            parents.append(len(expected) - 1 if position > start else NO_PARENT)
            expected.append((slot, position, tokens[slot, position]))
    used = len(expected)
    packed = zip(batch.slot_ids, batch.positions, batch.tokens, strict=True)
    assert list(packed)[:used] == expected
    assert batch.parents.tolist() == parents + [NO_PARENT] * (CAPACITY - used)
    assert (batch.slot_ids[used:] == NUM_SLOTS).all()
    assert ((batch.positions >= 0) & (batch.positions < CACHE_LEN)).all()
    assert batch.cu_q_lens.tolist() == np.cumsum([0, *q_lens]).tolist()
    assert batch.kv_lens.tolist() == [s + q for s, q in zip(starts, q_lens, strict=True)]
    assert {x.dtype for x in batch[:6]} == {np.dtype(np.int32)}


TOKENS = np.arange(NUM_SLOTS * CACHE_LEN, dtype=np.int32).reshape(NUM_SLOTS, CACHE_LEN)


@given(rows())
def test_rows_lie_slot_after_slot_without_gaps(drawn):
    check(*drawn, TOKENS, None)


@given(rows(), st.lists(st.integers(0, K), min_size=NUM_SLOTS, max_size=NUM_SLOTS))
def test_draft_tokens_follow_the_known_text(drawn, draft_lens):
    """The last rows of each slot hold its draft tokens."""
    starts, q_lens = drawn
    drafted = [min(*each) for each in zip(draft_lens, q_lens, strict=True)]
    ends = np.asarray(starts) + np.asarray(q_lens)
    guesses = Guesses(1000 + TOKENS[:, :K], int32s(ends - drafted))
    tokens = TOKENS.copy()
    for slot, count in enumerate(drafted):
        tokens[slot, ends[slot] - count : ends[slot]] = guesses.tokens[slot, :count]
    check(starts, q_lens, tokens, guesses)
