"""Drafts from the target's last hidden state, without a cache, see `models.recurrent_draft`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.frequent import choose_frequent
from emsjax.drafters.from_states import FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, WorthDrafting
from emsjax.engine.state import DecodeState
from emsjax.sampling.rows import rows_after


class Cell(Protocol):
    """The part of `RecurrentDraft` that the drafter uses."""

    def __call__(self, hidden: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the next hidden state [B, D]."""

    def logits(self, hidden: jax.Array, shared: Any) -> jax.Array:
        """Returns logits float32[B, Vd] for the tokens that the draft can guess."""

    def confidence(self, hidden: jax.Array, probability: jax.Array) -> jax.Array:
        """Returns the log-odds float32[B] that the guess is right."""


class _Drafting(NamedTuple):
    """The carry of the loop over draft tokens.

    Attributes:
      done: int32[], tokens drafted so far.
      hidden: [B, D], the cell's last hidden state.
      guesses: int32[B, k].
      confidence: float32[B, k].
    """

    done: jax.Array
    hidden: jax.Array
    guesses: jax.Array
    confidence: jax.Array


@dataclass(frozen=True)
class Recurrent(FromStates):
    """Drafts for all slots at once, with one small cell per token; remembers nothing between steps.

    Attributes:
      name: name of the draft, for display and for the table of step costs.
      weights: the cell's parameters, and the arrays that it shares with the target.
      merge: builds the cell from its parameters.
      vocab_size: V of the target.
      hidden_size: D of the target.
      draft_length: k.
    """

    name: str
    weights: tuple[Any, Any] = field(repr=False)
    merge: Callable[[Any], Cell] = field(repr=False)
    vocab_size: int
    hidden_size: int
    draft_length: int = 7
    hidden_layers: tuple[int, ...] = field(default=(), init=False)

    @property
    def read_bytes(self) -> int:
        """Bytes of all weights except the embedding, of which each token reads one row."""
        params, shared = self.weights
        return sum(x.nbytes for x in jax.tree.leaves((params, shared.head)))

    def propose(
        self, state: DecodeState, weights: Any, worth: WorthDrafting
    ) -> tuple[Draft, tuple[()]]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        ready, length = self.plan(state, worth)
        shape = (ready.shape[0], self.draft_length)
        start = _Drafting(
            jnp.zeros((), jnp.int32),
            state.hidden,
            jnp.zeros(shape, jnp.int32),
            jnp.zeros(shape, jnp.float32),
        )
        params, shared = weights
        cell = self.merge(params)
        drafted = jax.lax.while_loop(
            lambda now: (now.done < length) & ready.any(),
            lambda now: self._guess(cell, shared, state, now),
            start,
        )
        lens = jnp.where(ready, length, 0)
        source = jnp.full_like(drafted.guesses, COSTLY_SOURCE)
        return Draft(drafted.guesses, lens, drafted.confidence, source), ()

    def _guess(self, cell: Cell, shared: Any, state: DecodeState, now: _Drafting) -> _Drafting:
        """Adds one guess per slot."""
        rows = rows_after(state.tokens, state.lens, now.guesses, now.done)
        hidden = cell(now.hidden, shared.embed(rows.tokens))
        logits = cell.logits(hidden, shared)
        guess, given = choose_frequent(logits, shared.token_ids, rows, state, self.vocab_size)
        sure = jax.nn.sigmoid(cell.confidence(hidden, given))
        return _Drafting(
            done=now.done + 1,
            hidden=hidden,
            guesses=now.guesses.at[:, now.done].set(guess),
            confidence=now.confidence.at[:, now.done].set(sure),
        )
