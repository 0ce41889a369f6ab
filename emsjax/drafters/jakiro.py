"""Drafts by a Jakiro head, see `models.jakiro_head`: like an EAGLE head, with a pass less."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.drafters.eagle import Eagle
from emsjax.drafters.from_states import Drafting
from emsjax.engine.state import DecodeState


@dataclass(frozen=True)
class Jakiro(Eagle):
    """Drafts chains for all slots at once. The last token of a draft needs no pass.

    `Eagle` has the attributes. A state is twice as wide as the target's: its first half guesses the
    next token, its second half the one after that.
    """

    def _continued(self, now: Drafting, state: DecodeState, weights: Any, lens: Any) -> Drafting:
        """Runs one row per slot; before the last guess, changes to the state's second half."""
        done = super()._continued(now, state, weights, lens)
        swapped = jnp.roll(done.states, self.hidden_size // 2, axis=1)
        return done._replace(states=jnp.where(self._ends(now, lens), swapped, done.states))

    def _reads(self, now: Drafting, lens: jax.Array) -> jax.Array:
        return (now.done > 0) & ~self._ends(now, lens)

    def _ends(self, now: Drafting, lens: jax.Array) -> jax.Array:
        """Returns whether the next guess is the last of the longest draft, and not the first."""
        return (now.done > 0) & (now.done + 1 == lens.max())

    def _guess(self, now: Drafting, state: DecodeState, weights: Any) -> Drafting:
        half = now._replace(states=now.states[:, : self.hidden_size // 2])
        return super()._guess(half, state, weights)._replace(states=now.states)
