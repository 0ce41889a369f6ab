"""Which of two drafts a sample takes."""

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
    """Drafts two tokens for every live slot, as sure of each as it is told to be; 0 for no draft.

    Its state is which slots were live when it was asked last.
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
        return Draft(tokens, lens, confidence, jnp.full_like(lens, self.source)), state.live


def propose(lookup: list[float], model: list[float]) -> tuple[list[int], list[bool]]:
    """The token that each slot's draft is of, 0 for none, and whether the model was asked."""
    drafter = Combined(Says(FOUND, tuple(lookup)), Says(GUESSED, tuple(model), COSTLY_SOURCE))
    slots = len(lookup)
    state = make_state(slots, 8, K, lens=int32s([3] * slots), live=np.ones(slots, np.bool))
    draft, (_, asked) = drafter.propose(
        state.replace(drafter=((), ())), (), lambda survival: jnp.asarray(K)
    )
    tokens = np.where(np.asarray(draft.lens) > 0, np.asarray(draft.tokens)[:, 0], 0)
    return tokens.tolist(), np.asarray(asked).tolist()


def test_what_is_found_with_confidence_spares_the_model():
    # The model is expected to be right in 0.6 of cases, as any before its first draft.
    tokens, asked = propose([0.9, 0.55, 0.0], [0.99, 0.99, 0.99])
    assert tokens == [FOUND, FOUND, GUESSED]
    assert asked == [False, False, True]


def test_a_model_that_turns_out_less_sure_than_expected_gives_way():
    tokens, asked = propose([0.45, 0.45], [0.3, 0.8])
    assert asked == [True, True]
    assert tokens == [FOUND, GUESSED]


def test_what_is_found_is_better_than_nothing_and_nothing_is_no_draft():
    tokens, _ = propose([0.1, 0.0], [0.0, 0.0])
    assert tokens == [FOUND, 0]


def test_what_was_guessed_in_vain_is_learnt_from_too():
    """Else the model would be thought better than it is, and asked for ever."""
    drafter = Combined(Says(FOUND, (0.45, 0.45)), Says(GUESSED, (0.1, 0.1), COSTLY_SOURCE))
    state = make_state(2, 8, K, lens=int32s([3, 3]), live=np.ones(2, np.bool))
    draft, _ = drafter.propose(state.replace(drafter=((), ())), (), lambda survival: jnp.asarray(K))
    assert draft.source.tolist() == [0, 0], "what was found is better"
    before = expect(state.experience, COSTLY_SOURCE, K)
    likely = predict(draft, state.experience)
    experience = learn(state.experience, draft, likely, int32s([0, 0]), int32s([0, 0]))
    assert (expect(experience, COSTLY_SOURCE, K) < before).all()
    assert (experience.slots == 0).all()
