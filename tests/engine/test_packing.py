"""`pack` against packing row by row."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emsjax.engine.packing import PackedBatch, pack
from tests.engine.states import int32s

NUM_SLOTS, CACHE_LEN, CAPACITY = 4, 20, 16

packing = jax.jit(lambda tokens, starts, q_lens: pack(tokens, starts, q_lens, CAPACITY))


@st.composite
def rows(draw):
    """Where each slot starts and how many rows it has, at most CAPACITY in all."""
    starts, q_lens, left = [], [], CAPACITY
    for _ in range(NUM_SLOTS):
        q_lens.append(draw(st.sampled_from((0, min(1, left), left)) | st.integers(0, left)))
        starts.append(draw(st.integers(0, CACHE_LEN - q_lens[-1])))
        left -= q_lens[-1]
    return starts, q_lens


@given(rows())
def test_rows_lie_slot_after_slot_without_gaps(drawn):
    starts, q_lens = drawn
    tokens = np.arange(NUM_SLOTS * CACHE_LEN, dtype=np.int32).reshape(NUM_SLOTS, CACHE_LEN)
    batch = PackedBatch(*map(np.asarray, packing(tokens, int32s(starts), int32s(q_lens))[:5]))
    expected = [
        (slot, position, tokens[slot, position])
        for slot, (start, q_len) in enumerate(zip(starts, q_lens, strict=True))
        for position in range(start, start + q_len)
    ]
    used = len(expected)
    packed = zip(batch.slot_ids, batch.positions, batch.tokens, strict=True)
    assert list(packed)[:used] == expected
    assert (batch.slot_ids[used:] == NUM_SLOTS).all()
    assert ((batch.positions >= 0) & (batch.positions < CACHE_LEN)).all()
    assert batch.cu_q_lens.tolist() == np.cumsum([0, *q_lens]).tolist()
    assert batch.kv_lens.tolist() == [s + q for s, q in zip(starts, q_lens, strict=True)]
    assert {x.dtype for x in batch[:5]} == {np.dtype(np.int32)}
