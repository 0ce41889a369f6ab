"""The prefix that each packed row follows, against the slot's text token by token."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.choices import prefixes_of
from emsjax.engine.draft import Draft
from emsjax.engine.packing import Guesses, pack
from emsjax.sampling.rows import NO_TOKEN, Rows, rows_after
from tests.engine.states import int32s, make_state, slots

NUM_SLOTS, CACHE_LEN, K, CAPACITY = 4, 20, 3, 32


@jax.jit
def packed_prefixes(state, draft, q_lens):
    guesses = Guesses(draft.tokens, state.lens)
    batch = pack(state.tokens, state.kv_lens, q_lens, CAPACITY, guesses)
    return batch, prefixes_of(batch, state, guesses)


@st.composite
def steps(draw):
    """States whose text past `lens` is no token, drafts, and how many rows each slot computes."""
    fields = draw(slots(NUM_SLOTS, CACHE_LEN))
    text = np.arange(NUM_SLOTS * CACHE_LEN, dtype=np.int32).reshape(NUM_SLOTS, CACHE_LEN)
    fields["tokens"] = np.where(np.arange(CACHE_LEN)[None] < fields["lens"][:, None], text, -7)
    drafted = 1000 + np.arange(NUM_SLOTS * K, dtype=np.int32).reshape(NUM_SLOTS, K)
    q_lens = []
    for slot, live in enumerate(fields["live"]):
        waiting = int(fields["lens"][slot] - fields["kv_lens"][slot])
        most = min(waiting + (K if waiting == 1 else 0), CAPACITY // NUM_SLOTS)
        most = min(most, CACHE_LEN - int(fields["kv_lens"][slot]))
        q_lens.append(draw(st.integers(1, most)) if live else 0)
    return fields, drafted, q_lens


@settings(max_examples=200)
@given(steps())
def test_every_row_knows_its_own_prefix(drawn):
    fields, drafted, q_lens = drawn
    state = make_state(NUM_SLOTS, CACHE_LEN, K, **fields)
    draft = Draft(drafted, int32s([K] * NUM_SLOTS))
    batch, found = jax.device_get(packed_prefixes(state, draft, int32s(q_lens)))
    for row in range(sum(q_lens)):
        slot, position = int(batch.slot_ids[row]), int(batch.positions[row])
        known = fields["tokens"][slot, : fields["lens"][slot]].tolist()
        prefix = [*known, *drafted[slot].tolist()][: position + 1]
        path = prefix[len(known) :]
        assert found.slots[row] == slot
        assert found.positions[row] == position
        assert found.tokens[row] == prefix[-1]
        assert found.path[row].tolist() == path + [NO_TOKEN] * (K - len(path))
        if position:
            assert found.before[row] == prefix[-2]


@given(slots(NUM_SLOTS, CACHE_LEN), st.integers(0, K))
def test_a_drafters_rows_are_those_that_the_target_will_verify(fields, done):
    """A draft model chooses with the prefix that packing gives the same place."""
    text = np.arange(NUM_SLOTS * CACHE_LEN, dtype=np.int32).reshape(NUM_SLOTS, CACHE_LEN)
    drafted = 1000 + np.arange(NUM_SLOTS * K, dtype=np.int32).reshape(NUM_SLOTS, K)
    lens = fields["lens"]
    found = Rows(*map(np.asarray, rows_after(text, lens, drafted, int32s(done))))
    for slot in range(NUM_SLOTS):
        prefix = [*text[slot, : lens[slot]].tolist(), *drafted[slot, :done].tolist()]
        assert found.positions[slot] == len(prefix) - 1
        assert found.tokens[slot] == prefix[-1]
        assert found.path[slot].tolist() == prefix[lens[slot] :] + [NO_TOKEN] * (K - done)
        if len(prefix) > 1:
            assert found.before[slot] == prefix[-2]
