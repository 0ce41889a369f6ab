"""A drafter that drafts nothing, for plain decoding."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless, WorthDrafting
from emsjax.engine.state import DecodeState


@dataclass(frozen=True)
class NoDrafter(Stateless):
    """Drafts nothing, so that every step emits one token per slot."""

    draft_length: int = 0

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Returns an empty draft for every slot."""
        del weights, worth
        num_slots = state.lens.shape[0]
        return Draft(jnp.zeros((num_slots, 0), jnp.int32), jnp.zeros(num_slots, jnp.int32)), ()
