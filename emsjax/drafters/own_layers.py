"""Drafts with the target's own last layers, on the target's own cache.

The first layers are skipped. A small trained map, `models.state_map`, guesses the input of the last
layers for a token from their input for the token before and from the token's embedding. The last
layers then run on the guess. They attend to the true K/V of the text and to those of the draft's
own rows, which lie past the known text. The target writes all of these again when it verifies the
draft, before it reads them. So drafting needs no cache, and nothing of the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.frequent import guess_frequent
from emsjax.drafters.from_states import FromStates
from emsjax.drafters.token_by_token import Drafting
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import row_capacity
from emsjax.engine.model import Inner, Model
from emsjax.engine.packing import Guesses, pack
from emsjax.engine.sizes import Exchange
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes
from emsjax.sampling.rows import rows_after


class StateMap(Protocol):
    """The trained part of the draft."""

    def __call__(self, states: jax.Array, embedded: jax.Array) -> jax.Array:
        """Returns the next states [B, D]."""


class Parts(NamedTuple):
    """What the drafter computes with, as arrays.

    Attributes:
      state_map: parameters of the map.
      shared: embedding and reduced output projection, see `models.recurrent_draft.Shared`.
      target: parameters of the target. They are the engine's own, not copies.
    """

    state_map: Any
    shared: Any
    target: Any


@dataclass(frozen=True)
class OwnLayers(FromStates):
    """Drafts for all slots at once, token by token; remembers nothing between steps.

    Attributes:
      name: name of the draft, for display and for the table of step costs.
      weights: see `Parts`.
      merge: builds the map and the target from their parameters.
      vocab_size: V of the target.
      hidden_size: D of the target.
      first_layer: the first of the target's layers that run.
      read_bytes: bytes of weights that a pass reads: map, last layers, output projection.
      draft_length: k.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
      exchanges: what devices that share the target exchange in a pass.
    """

    name: str
    weights: Parts = field(repr=False)
    merge: Callable[[Any, Any], tuple[StateMap, Model]] = field(repr=False)
    vocab_size: int
    hidden_size: int
    first_layer: int
    read_bytes: int
    draft_length: int = 7
    narrowest: int = 8
    exchanges: tuple[Exchange, ...] = ()

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The layer whose input it continues."""
        return (self.first_layer,)

    def passes(self, num_slots: int) -> Passes:
        """Returns that a pass of the last layers guesses one token."""
        del num_slots
        return Passes(self.draft_length, exchanges=self.exchanges)

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        ready, length = self.plan(state, worth)
        # Rows have places in the cache only as far as the text may grow.
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        lens = jnp.where(ready, jnp.minimum(length, room), 0)
        start = Drafting.begin(ready.shape[0], self.draft_length, state.cache, state.hidden)
        state_map, target = self.merge(weights.state_map, weights.target)
        drafted = jax.lax.while_loop(
            lambda now: (now.done < lens).any(),
            lambda now: self._guess(state_map, target, weights.shared, state, lens, now),
            start,
        )
        source = jnp.full_like(drafted.guesses, COSTLY_SOURCE)
        draft = Draft(drafted.guesses, lens, drafted.confidence, source, cache=drafted.cache)
        return draft, ()

    def _guess(
        self,
        state_map: StateMap,
        target: Model,
        shared: Any,
        state: DecodeState,
        lens: jax.Array,
        now: Drafting,
    ) -> Drafting:
        """Adds one guess per slot."""
        assert now.states is not None
        num_slots = lens.shape[0]
        rows = rows_after(state.tokens, state.lens, now.guesses, now.done)
        states = state_map(now.states, shared.embed(rows.tokens))
        capacity = row_capacity(num_slots, self.narrowest)
        q_lens = (now.done < lens).astype(jnp.int32)
        guesses = Guesses(now.guesses, state.lens)
        batch = pack(state.tokens, state.lens - 1 + now.done, q_lens, capacity, guesses)
        batch = batch if state.holes is None else after_holes(batch, state.holes)
        packed = Inner(states[jnp.minimum(batch.slot_ids, num_slots - 1)], self.first_layer)
        done = target.run(batch, now.cache, max_q_len=1, start=packed)
        newest = done.hidden[jnp.maximum(batch.cu_q_lens[1:] - 1, 0)]
        logits = target.logits(newest, shared)
        found = guess_frequent(logits, shared.token_ids, rows, state, self.vocab_size)
        return now._replace(states=states, cache=done.cache).add(found)
