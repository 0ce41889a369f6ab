"""The hidden state that a drafter reads is the one from which a slot's newest token was chosen."""

import jax
import numpy as np
import pytest

from emsjax.engine.job import Job
from tests.engine.setup import make_engine, tiny_model

SLOTS = 3


@pytest.mark.parametrize("drafter", ["combined", "tree"])
def test_the_newest_token_is_chosen_from_the_hidden_state(drafter: str):
    model = tiny_model("llama3")
    engine = make_engine(model, drafter, SLOTS)
    state = engine.empty()
    # So long that reading takes several steps, and repetitive, so that drafts are right.
    for slot in range(SLOTS):
        phrase = np.random.default_rng(slot).integers(3, model.vocab_size, 5)
        prompt = np.resize(phrase, 40 + 30 * slot).tolist()
        state = engine.admit(state, slot, Job(slot, prompt, 48), None)
    newest_of = jax.jit(lambda hidden: model.logits(hidden).argmax(axis=1))
    checked = 0
    while state.live.any():
        state = engine.advance(state, 1, others_wait=False)
        emitted = np.asarray(state.stats.target_steps) > 0
        newest = np.take_along_axis(
            np.asarray(state.tokens), np.asarray(state.lens)[:, None] - 1, 1
        )
        chosen, live = np.asarray(newest_of(state.hidden)), np.asarray(state.live)
        np.testing.assert_array_equal(chosen[emitted & live], newest[emitted & live, 0])
        checked += int((emitted & live).sum())
    assert checked > 20
    assert state.stats.accepted.any(), "no draft token was right, so this test shows little"
