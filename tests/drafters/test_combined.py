"""How `Combined` chooses between two drafts for each sample."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from emsjax.drafters import Combined
from emsjax.engine.acceptance import expect, learn, predict
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, Stateless
from tests.engine.states import int32s, make_state

K = 2
FOUND, GUESSED = 7, 8


@dataclass(frozen=True)
class Says(Stateless):
    """Drafts two tokens for every live slot with the given confidence, or none if that is 0.

    Its state records which slots were live in the last call.
    """

    token: int
    sure: tuple[float, ...]
    source: int = 0
    draft_length = K

    def propose(self, state: Any, weights: Any, worth: Any) -> tuple[Draft, Any]:
        del weights, worth
        sure = jnp.asarray(self.sure, jnp.float32)
        lens = jnp.where(state.live & (sure > 0), K, 0).astype(jnp.int32)
        confidence = jnp.repeat(sure[:, None], K, axis=1)
        tokens = jnp.full((len(self.sure), K), self.token, jnp.int32)
        return Draft(tokens, lens, confidence, jnp.full_like(tokens, self.source)), state.live


def propose(lookup: list[float], model: list[float]) -> tuple[list[int], list[bool]]:
    """Returns each slot's draft token, 0 for no draft, and whether the model was asked for it."""
    drafter = Combined(Says(FOUND, tuple(lookup)), Says(GUESSED, tuple(model), COSTLY_SOURCE))
    slots = len(lookup)
    state = make_state(slots, 8, K, lens=int32s([3] * slots), live=np.ones(slots, np.bool))
    draft, (_, asked) = drafter.propose(
        state.replace(drafter=((), ())), (), lambda survival: jnp.asarray(K)
    )
    tokens = np.where(np.asarray(draft.lens) > 0, np.asarray(draft.tokens)[:, 0], 0)
    return tokens.tolist(), np.asarray(asked).tolist()


def test_the_model_is_not_asked_where_a_confident_match_was_found():
    # Before its first draft, any model is expected to be right in 0.6 of cases.
    tokens, asked = propose([0.9, 0.55, 0.0], [0.99, 0.99, 0.99])
    assert tokens == [FOUND, FOUND, GUESSED]
    assert asked == [False, False, True]


def test_a_match_wins_over_a_model_that_is_less_confident_than_expected():
    tokens, asked = propose([0.45, 0.45], [0.3, 0.8])
    assert asked == [True, True]
    assert tokens == [FOUND, GUESSED]


def test_a_weak_match_wins_over_no_guess():
    tokens, _ = propose([0.1, 0.0], [0.0, 0.0])
    assert tokens == [FOUND, 0]


def test_unused_guesses_are_learnt_from_too():
    """Otherwise the model would seem better than it is, and would always be asked."""
    drafter = Combined(Says(FOUND, (0.45, 0.45)), Says(GUESSED, (0.1, 0.1), COSTLY_SOURCE))
    state = make_state(2, 8, K, lens=int32s([3, 3]), live=np.ones(2, np.bool))
    draft, _ = drafter.propose(state.replace(drafter=((), ())), (), lambda survival: jnp.asarray(K))
    assert not draft.source.any(), "the match is better"
    before = expect(state.experience, COSTLY_SOURCE, K)
    likely = predict(draft, state.experience)
    nothing = jnp.zeros(likely.shape, jnp.bool)
    experience = learn(state.experience, draft, likely, nothing, nothing)
    assert (expect(experience, COSTLY_SOURCE, K) < before).all()
    assert (experience.slots == 0).all()
