"""Drafts from the target's last hidden state, without a cache, see `models.recurrent_draft`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.beam import Beam, choices_of, draft_of, grow, prefixes, start, width_of
from emsjax.drafters.frequent import guess_frequent
from emsjax.drafters.from_states import FromStates
from emsjax.engine.devices import bytes_of_device
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes


class Cell(Protocol):
    """The part of `RecurrentDraft` that the drafter uses."""

    def __call__(self, hidden: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the next hidden state [B, D]."""

    def logits(self, hidden: jax.Array, shared: Any) -> jax.Array:
        """Returns logits float32[B, Vd] for the tokens that the draft can guess."""


@dataclass(frozen=True)
class Recurrent(FromStates):
    """Drafts for all slots at once, with one small cell per token; remembers nothing between steps.

    Attributes:
      name: name of the draft, for display and for the table of step costs.
      weights: the cell's parameters, and the arrays that it shares with the target.
      merge: builds the cell from its parameters.
      vocab_size: V of the target.
      hidden_size: D of the target.
      draft_length: k, the most guesses of a slot.
      beam_rows: the most rows of a pass for which a slot's draft branches. With more slots, drafts
        are chains.
    """

    name: str
    weights: tuple[Any, Any] = field(repr=False)
    merge: Callable[[Any], Cell] = field(repr=False)
    vocab_size: int
    hidden_size: int
    draft_length: int = 7
    beam_rows: int = 1
    hidden_layers: tuple[int, ...] = field(default=(), init=False)

    @property
    def read_bytes(self) -> int:
        """Bytes of all weights except the embedding, of which each token reads one row."""
        params, shared = self.weights
        return bytes_of_device((params, shared.head))

    def passes(self, num_slots: int) -> Passes:
        """Returns that a pass continues all paths by a token."""
        return Passes(self.draft_length, rows=width_of(self.beam_rows, num_slots))

    def propose(
        self, state: DecodeState, weights: Any, worth: WorthDrafting
    ) -> tuple[Draft, tuple[()]]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        ready, length = self.plan(state, worth)
        params, shared = weights
        cell = self.merge(params)
        num_slots = ready.shape[0]
        width = width_of(self.beam_rows, num_slots)
        drafted = jax.lax.while_loop(
            lambda beam: (beam.done < length) & ready.any(),
            lambda beam: self._guess(cell, shared, state, beam),
            start(state.hidden, num_slots, self.draft_length, width),
        )
        return draft_of(drafted, jnp.where(ready, length, 0), self.draft_length), ()

    def _guess(self, cell: Cell, shared: Any, state: DecodeState, beam: Beam) -> Beam:
        """Adds a guess to each path."""
        wide = beam.shares.shape
        rows = prefixes(beam, state)
        hidden = cell(beam.ends_state.reshape(-1, self.hidden_size), shared.embed(rows.tokens))
        logits = cell.logits(hidden, shared)
        count = choices_of(wide[1])
        found = guess_frequent(logits, shared.token_ids, rows, state, self.vocab_size, count)
        return grow(beam, hidden.reshape(*wide, self.hidden_size), found)
