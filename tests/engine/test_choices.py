"""Choices after the rows that emit, chunk by chunk, against a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine import choices
from emsjax.engine.choices import EmittingRows, choose_in_chunks
from emsjax.sampling.choose import Chosen

NOTHING = -5


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 16), st.data())
def test_only_rows_that_emit_are_chosen_after(num_slots, length, chunk, data):
    shape = (num_slots, length)
    emits = np.array(data.draw(st.lists(st.booleans(), min_size=num_slots, max_size=num_slots)))
    emits = emits[:, None] & (np.arange(length)[None] < data.draw(st.integers(0, length)))
    index = np.arange(num_slots * length, dtype=np.int32)[::-1].reshape(shape)
    calls = []

    def choose_after(rows):
        calls.append(rows)
        return Chosen(100 + rows, None)

    chunk_of_module, choices._CHUNK = choices._CHUNK, chunk
    try:
        with jax.disable_jit():  # so that each chunk calls the function
            found = choose_in_chunks(
                choose_after,
                EmittingRows(jnp.asarray(index), jnp.asarray(emits)),
                Chosen(jnp.full(shape, NOTHING), None),
            )
    finally:
        choices._CHUNK = chunk_of_module
    tokens = np.asarray(found.tokens)
    np.testing.assert_array_equal(tokens[emits], 100 + index[emits])
    # The last chunk is filled with rows that do not emit.
    assert ((tokens == 100 + index) | (tokens == NOTHING)).all()
    # Each call costs the target's head, so there is none without a row that emits.
    assert len(calls) == -(-emits.sum() // min(chunk, emits.size))
