"""A drafter that drafts nothing and records the target's hidden states."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.state import DecodeState


@dataclass(frozen=True)
class Recorder:
    """Records the hidden state from which each token was chosen, in a state float32[B, S, D].

    Attributes:
      hidden_size: D.
    """

    hidden_size: int
    hidden_layers: tuple[int, ...] = ()
    draft_length = 0
    read_bytes = 0
    weights = ()

    def init(self, num_slots: int, capacity: int) -> jax.Array:
        """Returns an empty record."""
        # float32 even for narrower models: on a CPU, XLA converts the whole array around each
        # scatter of any other dtype.
        return jnp.zeros((num_slots, capacity, self.hidden_size), jnp.float32)

    def admit(self, drafter_state: jax.Array, slot: jax.Array) -> jax.Array:
        """Changes nothing: each position is overwritten before it is read."""
        del slot
        return drafter_state

    def propose(
        self, state: DecodeState, weights: tuple[()], worth: WorthDrafting
    ) -> tuple[Draft, Any]:
        """Records the hidden state of each slot's newest token, at that token's position."""
        del weights, worth
        assert state.hidden is not None
        num_slots, capacity = state.tokens.shape
        slots = jnp.arange(num_slots, dtype=jnp.int32)
        # A slot that still reads its prompt has no new hidden state; its write is dropped.
        decoding = state.live & (state.lens - state.kv_lens == 1)
        places = jnp.where(decoding, state.lens - 1, capacity)
        written = state.drafter.at[slots, places].set(state.hidden.astype(jnp.float32), mode="drop")
        nothing = jnp.zeros((num_slots, 0), jnp.int32)
        return Draft(nothing, jnp.zeros(num_slots, jnp.int32)), written
