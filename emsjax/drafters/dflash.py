"""Drafts by a DFlash head, see `models.dflash_head`: a whole block of guesses in one pass.

The head reads the target's inner states of every token, and keeps K/V made of them. A draft is one
pass over the newest token and a row of the mask token for every guess. Its K/V lie past the text,
where the next step's tokens will be, and are never kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.at_once import AtOnce, Guessable
from emsjax.drafters.own_cache import CachedHead, OwnCache
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Observation, WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import row_capacity
from emsjax.engine.packing import PackedBatch, pack
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


class Head(CachedHead, Protocol):
    """The part of `DFlashHead` that the drafter uses."""

    def read(self, batch: PackedBatch, states: jax.Array, cache: Any, *, max_q_len: int) -> Any:
        """Returns the cache with K/V of packed rows, made of the target's states [T, E]."""

    def embed(self, tokens: jax.Array, embedding: Any) -> jax.Array:
        """Returns the embedding [W, D] of tokens int32[W]."""

    def guess(
        self, batch: PackedBatch, embedded: jax.Array, cache: Any, *, block: int
    ) -> tuple[jax.Array, Any]:
        """Returns states [T, D] for the rows of blocks, and the cache, changed past the text."""

    def logits(self, states: jax.Array, output: Any) -> jax.Array:
        """Returns logits float32[W, V] of states [W, D]."""


class Parts(NamedTuple):
    """What the drafter computes with, as arrays.

    Attributes:
      head: parameters of the head.
      embedding: the target's token embedding, not a copy. Devices may share it.
      output: the target's output projection, not a copy. Devices may share it.
    """

    head: Any
    embedding: Any
    output: Any


@dataclass(frozen=True)
class DFlash(OwnCache, AtOnce):
    """Drafts for all slots at once. Its state is the head's K/V.

    Attributes:
      name: name of the head, for display and for the table of step costs.
      weights: see `Parts`.
      merge: builds the head from its parameters.
      vocab_size: V of the target.
      hidden_layers: the target's layers whose inputs the head reads.
      block: rows of a block: the newest token and one for each guess.
      mask_token: the token of a row that guesses.
      read_bytes: bytes of weights that a pass reads.
      observed_bytes: bytes of weights with which `observe` multiplies rows.
      draft_length: k, the most guesses of a slot.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
      beam_rows: the most paths in all slots for which drafts branch.
      vocabulary: which tokens the logits are of.
    """

    name: str
    weights: Parts = field(repr=False)
    merge: Callable[[Any], Head] = field(repr=False)
    vocab_size: int
    hidden_layers: tuple[int, ...]
    block: int
    mask_token: int
    read_bytes: int
    observed_bytes: int = 0
    draft_length: int = 7
    narrowest: int = 8
    beam_rows: int = 1
    vocabulary: Vocabulary = WHOLE
    # Drafts begin with nothing but the cache.
    hidden_size: int = field(default=0, init=False)

    def passes(self, num_slots: int) -> Passes:
        """Returns that a block is one pass."""
        del num_slots
        passes = self.one_pass(self.block - 1, rows=self.block)
        return passes._replace(observing=self.observed_bytes)

    def built(self) -> Head:
        """Returns the head."""
        return self.merge(self.weights.head)

    def observe(
        self, drafter_state: Any, weights: Parts, seen: Observation
    ) -> tuple[Any, jax.Array]:
        """Reads the rows of a step; returns the cache, and states that mean nothing."""
        head = self.merge(weights.head)
        cache = head.read(seen.batch, seen.hidden, drafter_state, max_q_len=seen.max_q_len)
        return cache, seen.hidden

    def propose(
        self, state: DecodeState, weights: Parts, worth: WorthDrafting
    ) -> tuple[Draft, Any]:
        """Drafts for each slot that has emitted its first token."""
        head, depths = self.merge(weights.head), self.depths(state, worth, self.block - 1)
        # The rows of a block are written twice, one behind the other.
        past = state.lens - 1 + 2 * self.block - 1
        past += 0 if state.holes is None else state.holes.counts
        depths = jnp.where(past <= state.tokens.shape[1], depths, 0)
        num_slots = depths.shape[0]
        shape = num_slots, self.block - 1, weights.output.shape[0]

        def run(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
            pending, _, cache = carry
            capacity = row_capacity(num_slots * self.block, self.narrowest)
            q_lens = jnp.where(depths > 0, self.block, 0)
            batch = pack(state.tokens, jnp.maximum(state.lens - 1, 0), q_lens, capacity)
            slots = jnp.minimum(batch.slot_ids, num_slots - 1)
            first = jnp.arange(capacity, dtype=jnp.int32) == batch.cu_q_lens[slots]
            tokens = jnp.where(first, batch.tokens, self.mask_token)
            batch = batch if state.holes is None else after_holes(batch, state.holes)
            embedded = head.embed(tokens, weights.embedding)
            states, cache = head.guess(batch, embedded, cache, block=self.block)
            guesses = jnp.arange(1, self.block, dtype=jnp.int32)
            rows = jnp.minimum(batch.cu_q_lens[:-1, None] + guesses[None], capacity - 1)
            logits = head.logits(states[rows.reshape(-1)], weights.output)
            return jnp.zeros_like(pending), logits.reshape(shape), cache

        # A while loop of at most one trip, because a `cond` would copy the cache, see `loop`.
        nothing = self.vocabulary.of_part(jnp.zeros(shape, jnp.float32))
        carry = ((depths > 0).any(), nothing, state.drafter)
        _, logits, cache = jax.lax.while_loop(lambda carry: carry[0], run, carry)
        guessable = Guessable(None, self.vocab_size, self.vocabulary)
        return self.draft_from(logits, depths, state, guessable), cache
