"""Drafts by a Jakiro head, see `models.jakiro_head`: like an EAGLE head, with a pass less."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emsjax.drafters.eagle import Drafting, Eagle
from emsjax.engine.state import DecodeState


@dataclass(frozen=True)
class Jakiro(Eagle):
    """Drafts for all slots at once. The last tokens of the longest draft need no pass.

    `Eagle` has the attributes. A state is twice as wide as the target's: its first half guesses the
    next token, its second half the one after that.
    """

    # The first guesses, and the last ones if there are others.
    _spared: ClassVar[int] = 2

    def _continued(
        self, now: Drafting, state: DecodeState, weights: Any, depths: jax.Array
    ) -> Drafting:
        """Runs rows for the newest guesses; before the last ones, changes to the second half."""
        done = super()._continued(now, state, weights, depths)
        ends = done.beam.ends_state
        swapped = jnp.roll(ends.states, self.hidden_size // 2, axis=2)
        states = jnp.where(self._ends(now, depths), swapped, ends.states)
        beam = done.beam._replace(ends_state=ends._replace(states=states))
        return done._replace(beam=beam)

    def _reads(self, now: Drafting, depths: jax.Array) -> jax.Array:
        return (now.beam.done > 0) & ~self._ends(now, depths)

    def _ends(self, now: Drafting, depths: jax.Array) -> jax.Array:
        """Returns whether the next guesses are the last of the longest draft, and not the first."""
        return (now.beam.done > 0) & (now.beam.done + 1 == depths.max())

    def _logits(self, states: jax.Array, weights: Any) -> jax.Array:
        return super()._logits(states[:, : self.hidden_size // 2], weights)
