"""What drafters have in common that begin with the target's hidden states."""

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import expect
from emsjax.engine.drafter import COSTLY_SOURCE, Memoryless, WorthDrafting
from emsjax.engine.state import DecodeState


class FromStates(Memoryless):
    """Base class of drafters that begin with `DecodeState.hidden` in every step."""

    draft_length: int

    def plan(self, state: DecodeState, worth: WorthDrafting) -> tuple[jax.Array, jax.Array]:
        """Returns which slots can draft, bool[B], and how many tokens are worth it, int32[]."""
        # Before its first token, a slot still has the hidden state of the previous request.
        ready = state.live & (state.lens - state.kv_lens == 1) & (state.stats.target_steps > 0)
        likely = expect(state.experience, COSTLY_SOURCE, self.draft_length)
        return ready, worth(jnp.where(ready[:, None], jnp.cumprod(likely, axis=1), 0.0))
