"""Drafting with logits of all places at once, which no guess before them has changed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.drafters.beam import Beam, choices_of, draft_of, grow, prefixes, start, width_of
from emsjax.drafters.frequent import guess_frequent
from emsjax.drafters.from_states import FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


class Guessable(NamedTuple):
    """The tokens that a drafter can guess.

    Attributes:
      token_ids: int32[Vd], these tokens; None if they are the whole vocabulary.
      vocab_size: V of the target.
      vocabulary: which tokens the logits are of, if they may be of all.
    """

    token_ids: jax.Array | None
    vocab_size: int
    vocabulary: Vocabulary = WHOLE


class AtOnce(FromStates):
    """Base class of drafters that compute the logits of all places in one pass."""

    beam_rows: int

    def one_pass(self, places: int, rows: int = 1) -> Passes:
        """Returns that a pass of so many rows of a slot guesses all places."""
        depth = min(places, self.draft_length)
        return Passes(depth, guesses=depth, rows=rows)

    def depths(self, state: DecodeState, worth: WorthDrafting, places: int) -> jax.Array:
        """Returns how many of the places are worth a guess in each slot, int32[B], 0 for none.

        Args:
          state: the state of all slots.
          worth: see `Drafter.propose`.
          places: how many places there are logits for.
        """
        ready, length = self.plan(state, worth)
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        depths = jnp.minimum(jnp.minimum(length, room), min(places, self.draft_length))
        return jnp.where(ready, depths, 0)

    def draft_from(
        self, logits: jax.Array, depths: jax.Array, state: DecodeState, guessable: Guessable
    ) -> Draft:
        """Returns the likeliest guesses of each slot.

        Args:
          logits: float32[B, G, Vd], for the places after each slot's newest token.
          depths: int32[B], how many of the places count.
          state: the state of all slots.
          guessable: the tokens that the logits are for.
        """
        num_slots = depths.shape[0]
        width = width_of(self.beam_rows, num_slots)
        count = choices_of(width)

        def guess_place(beam: Beam) -> Beam:
            here = jax.lax.dynamic_index_in_dim(logits, beam.done, axis=1, keepdims=False)
            rows, (ids, size, vocabulary) = prefixes(beam, state), guessable
            wide = jnp.repeat(here, width, axis=0)
            found = guess_frequent(wide, ids, rows, state, size, count, vocabulary)
            return grow(beam, (), found)

        places = min(logits.shape[1], self.draft_length)
        beam = jax.lax.while_loop(
            lambda beam: (beam.done < depths).any(),
            guess_place,
            start((), num_slots, places, width),
        )
        return draft_of(beam, depths, self.draft_length)
