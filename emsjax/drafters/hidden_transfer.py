"""Drafts by hidden transfer, see `models.hidden_transfer`: all tokens of a draft in one pass.

The pass is like one of `own_layers`, with a row for each token ahead. What the target chooses in
each row does not depend on the tokens of the rows before it, because none of them is known to it.
So each row's likeliest tokens are the same on all paths, and a tree costs no more than a chain.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.at_once import AtOnce, Guessable
from emsjax.drafters.own_layers import OwnLayers
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.model import Inner
from emsjax.engine.packing import pack
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes


@dataclass(frozen=True)
class HiddenTransfer(OwnLayers, AtOnce):
    """Drafts for all slots at once; remembers nothing between steps.

    `OwnLayers` has the other attributes. Its `weights.state_map` are the parameters of the maps.

    Attributes:
      places: K, how many tokens ahead there are maps for.
      beam_rows: the most rows, of all slots, of which each continues a path of its own.
    """

    places: int = 1
    beam_rows: int = 1

    def passes(self, num_slots: int) -> Passes:
        """Returns that all places are one pass."""
        del num_slots
        every = self.one_pass(self.places, rows=self.places)
        return every._replace(exchanges=self.exchanges)

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts for each slot that has emitted its first token."""
        depths = self.depths(state, worth, self.places)
        logits, cache = self._logits(state, weights, depths)
        guessable = Guessable(weights.shared.token_ids, self.vocab_size)
        return self.draft_from(logits, depths, state, guessable)._replace(cache=cache), ()

    def _logits(self, state: DecodeState, weights: Any, lens: jax.Array) -> tuple[jax.Array, Any]:
        """Runs the pseudo states of each slot's next `lens` tokens, int32[B].

        Returns:
          Logits float32[B, K, Vd], without meaning past `lens`; and the cache.
        """
        hidden, num_slots = state.hidden, lens.shape[0]
        assert hidden is not None
        maps: Any  # takes states alone
        maps, target = self.merge(weights.state_map, weights.target)
        ahead_of = maps(hidden)
        # Rows have places in the cache only as far as the text may grow.
        rows = jnp.minimum(lens, jnp.maximum(state.max_lens - state.lens - 1, 0))
        places = jnp.arange(self.places, dtype=jnp.int32)

        def run(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
            pending, _, cache = carry
            capacity = num_slots * self.places
            batch = pack(state.tokens, state.lens - 1, rows, capacity)
            batch = batch if state.holes is None else after_holes(batch, state.holes)
            slots = jnp.minimum(batch.slot_ids, num_slots - 1)
            ahead = jnp.arange(capacity, dtype=jnp.int32) - batch.cu_q_lens[slots]
            pseudo = ahead_of[slots, jnp.minimum(ahead, self.places - 1)]
            begun = Inner(pseudo, self.first_layer)
            done = target.run(batch, cache, max_q_len=self.places, start=begun)
            of_place = jnp.minimum(batch.cu_q_lens[:-1, None] + places[None], capacity - 1)
            logits = target.logits(done.hidden[of_place.ravel()], weights.shared)
            return jnp.zeros_like(pending), logits.reshape(num_slots, self.places, -1), done.cache

        nothing = jnp.zeros((num_slots, self.places, weights.shared.token_ids.shape[0]))
        # A while loop of at most one trip, because a `cond` would copy the cache, see `loop`.
        carry = (rows > 0).any(), nothing, state.cache
        _, logits, cache = jax.lax.while_loop(lambda carry: carry[0], run, carry)
        return logits, cache
