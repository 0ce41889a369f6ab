"""Drafts by Medusa heads, see `models.medusa_heads`: one for each place, without a cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.at_once import AtOnce, Guessable
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes


class Heads(Protocol):
    """The part of `MedusaHeads` that the drafter uses."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns logits float32[B, G, Vd] of all heads for hidden states [B, D]."""


class Parts(NamedTuple):
    """What the drafter computes with, as arrays.

    Attributes:
      heads: parameters of the heads.
      token_ids: int32[Vd], the tokens that they can guess; None if they can guess all.
    """

    heads: Any
    token_ids: jax.Array | None


@dataclass(frozen=True)
class Medusa(AtOnce):
    """Drafts for all slots at once; remembers nothing between steps.

    Attributes:
      name: name of the heads, for display and for the table of step costs.
      weights: see `Parts`.
      merge: builds the heads from their parameters.
      vocab_size: V of the target.
      hidden_size: D of the target.
      num_heads: G, the most guesses on a path.
      read_bytes: bytes of weights that a pass of all heads reads.
      draft_length: k, the most guesses of a slot.
      beam_rows: the most paths in all slots for which drafts branch.
    """

    name: str
    weights: Parts = field(repr=False)
    merge: Callable[[Any], Heads] = field(repr=False)
    vocab_size: int
    hidden_size: int
    num_heads: int
    read_bytes: int
    draft_length: int = 7
    beam_rows: int = 1
    hidden_layers: tuple[int, ...] = field(default=(), init=False)

    def passes(self, num_slots: int) -> Passes:
        """Returns that all heads are one pass."""
        del num_slots
        return self.one_pass(self.num_heads)

    def propose(
        self, state: DecodeState, weights: Parts, worth: WorthDrafting
    ) -> tuple[Draft, tuple[()]]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        hidden, depths = state.hidden, self.depths(state, worth, self.num_heads)
        heads = self.merge(weights.heads)
        made = jax.eval_shape(heads.logits, hidden)
        logits = jax.lax.cond(
            (depths > 0).any(),
            lambda: heads.logits(hidden),
            lambda: jnp.zeros(made.shape, made.dtype),
        )
        guessable = Guessable(weights.token_ids, self.vocab_size)
        return self.draft_from(logits, depths, state, guessable), ()
