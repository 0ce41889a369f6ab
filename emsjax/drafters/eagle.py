"""Drafts by an EAGLE head, see `models.eagle_head`.

The head has K/V of its own for every token of which the target has K/V, at the same places. It
reads the rows of a step right after the target, those of prompts too: by then the token after each
row is known, or the target has just chosen it. So the head never lags behind, what it wrote for
rejected draft tokens is overwritten as in the target's cache, and a draft begins with a state that
is already there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.frequent import guess_frequent
from emsjax.drafters.from_states import Drafting, FromStates
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, Observation, WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import row_capacity
from emsjax.engine.model import Model
from emsjax.engine.packing import PackedBatch, pack
from emsjax.engine.state import DecodeState, copy_prefix
from emsjax.sampling.rows import rows_after


class Head(Protocol):
    """The part of `EagleHead` that the drafter uses."""

    def cache_spec(self, num_slots: int, capacity: int) -> Any:
        """Returns the shape and type of the head's K/V cache."""

    def embed(self, tokens: jax.Array, embedding: Any) -> jax.Array:
        """Returns the embedding [W, D] of tokens int32[W]."""

    def fuse(self, read: jax.Array) -> jax.Array:
        """Turns the target's states [T, E] into states of the head [T, D]."""

    def __call__(
        self,
        batch: PackedBatch,
        states: jax.Array,
        embedded: jax.Array,
        cache: Any,
        *,
        max_q_len: int,
    ) -> tuple[jax.Array, Any]:
        """Returns the states [T, D] of packed rows, and the cache with their K/V."""

    def logits(self, states: jax.Array) -> jax.Array | None:
        """Returns logits float32[W, Vd] of states [W, D]; None if that is up to the target."""

    def move_kv(self, cache: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array) -> Any:
        """Returns the cache with some K/V moved."""


class Parts(NamedTuple):
    """What the drafter computes with, as arrays.

    Attributes:
      head: parameters of the head.
      embedding: the target's token embedding, not a copy.
      token_ids: int32[Vd], the tokens that the head can guess; None if it can guess all.
      target: parameters of the target, if its output projection turns states into logits; else
        nothing. They are the engine's own, not copies.
      some: the part of its output projection for `token_ids`, see `engine.model.SomeTokens`; None
        for all of it.
    """

    head: Any
    embedding: Any
    token_ids: jax.Array | None
    target: Any
    some: Any = None


@dataclass(frozen=True)
class Eagle(FromStates):
    """Drafts chains for all slots at once, token by token. Its state is the head's K/V.

    Attributes:
      name: name of the head, for display and for the table of step costs.
      weights: see `Parts`.
      merge: builds the head, and the target if its parameters are given, from parameters.
      vocab_size: V of the target.
      hidden_size: D, the width of the head's states.
      hidden_layers: the target's layers whose inputs the head reads; empty for its final states.
      read_bytes: bytes of weights that a draft token reads.
      draft_length: k.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
    """

    name: str
    weights: Parts = field(repr=False)
    merge: Callable[[Any, Any], tuple[Head, Model | None]] = field(repr=False)
    vocab_size: int
    hidden_size: int
    hidden_layers: tuple[int, ...]
    read_bytes: int
    draft_length: int = 7
    narrowest: int = 8
    observing: bool = field(default=True, init=False)

    def init(self, num_slots: int, capacity: int) -> Any:
        """Returns an empty cache."""
        head, _ = self.merge(self.weights.head, self.weights.target)
        return jax.tree.map(jnp.zeros_like, head.cache_spec(num_slots, capacity))

    def share(
        self, drafter_state: Any, slot: jax.Array, source: jax.Array, length: jax.Array
    ) -> Any:
        """Returns the cache after a new request, with the beginning that it shares copied."""
        copied = jnp.where(source == slot, 0, length)
        return copy_prefix(drafter_state, source, slot, copied)

    def observe(
        self, drafter_state: Any, weights: Parts, seen: Observation
    ) -> tuple[Any, jax.Array]:
        """Reads the rows of a step; returns the cache, and the head's states of the rows."""
        head, _ = self.merge(weights.head, weights.target)
        states, embedded = head.fuse(seen.hidden), head.embed(seen.following, weights.embedding)
        states, cache = head(seen.batch, states, embedded, drafter_state, max_q_len=seen.max_q_len)
        return cache, states

    def move_kv(
        self, drafter_state: Any, sources: jax.Array, targets: jax.Array, moved: jax.Array
    ) -> Any:
        """Returns the cache with some K/V moved like the target's."""
        head, _ = self.merge(self.weights.head, self.weights.target)
        return head.move_kv(drafter_state, sources, targets, moved)

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        ready, length = self.plan(state, worth)
        # Rows have places in the cache only as far as the text may grow.
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        lens = jnp.where(ready, jnp.minimum(length, room), 0)
        shape = (ready.shape[0], self.draft_length)
        start = Drafting(
            jnp.zeros((), jnp.int32),
            state.hidden,
            state.drafter,
            jnp.zeros(shape, jnp.int32),
            jnp.zeros(shape, jnp.float32),
        )
        drafted = jax.lax.while_loop(
            lambda now: (now.done < lens).any(),
            lambda now: self._guess(self._continued(now, state, weights, lens), state, weights),
            start,
        )
        source = jnp.full_like(drafted.guesses, COSTLY_SOURCE)
        return Draft(drafted.guesses, lens, drafted.confidence, source), drafted.cache

    def _continued(
        self, now: Drafting, state: DecodeState, weights: Parts, lens: jax.Array
    ) -> Drafting:
        """Runs one row per slot for the newest guess; nothing before the first one."""
        num_slots = lens.shape[0]
        head, _ = self.merge(weights.head, weights.target)
        newest = rows_after(state.tokens, state.lens, now.guesses, now.done).tokens

        def run(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
            pending, states, cache = carry
            capacity = row_capacity(num_slots, self.narrowest)
            # The row of a guess stands where the target will have the token before it.
            starts = jnp.maximum(state.lens - 2 + now.done, 0)
            q_lens = (now.done < lens).astype(jnp.int32)
            batch = pack(state.tokens, starts, q_lens, capacity)
            batch = batch if state.holes is None else after_holes(batch, state.holes)
            slots = jnp.minimum(batch.slot_ids, num_slots - 1)
            embedded = head.embed(newest[slots], weights.embedding)
            found, cache = head(batch, states[slots], embedded, cache, max_q_len=1)
            last = found[jnp.maximum(batch.cu_q_lens[1:] - 1, 0)]
            return jnp.zeros_like(pending), last, cache

        # A while loop of at most one trip, because a `cond` would copy the cache, see `loop`.
        carry = (self._reads(now, lens), now.states, now.cache)
        _, states, cache = jax.lax.while_loop(lambda carry: carry[0], run, carry)
        return now._replace(states=states, cache=cache)

    def _reads(self, now: Drafting, lens: jax.Array) -> jax.Array:
        """Returns whether the newest guess needs a row, bool[]."""
        del lens
        return now.done > 0

    def _guess(self, now: Drafting, state: DecodeState, weights: Parts) -> Drafting:
        """Adds one guess per slot, chosen as the target will choose, with the same noise."""
        head, target = self.merge(weights.head, weights.target)
        logits = head.logits(now.states)
        if logits is None:
            assert target is not None
            logits = target.logits(now.states, weights.some)
        rows = rows_after(state.tokens, state.lens, now.guesses, now.done)
        found = guess_frequent(logits, weights.token_ids, rows, state, self.vocab_size)
        return now._replace(
            done=now.done + 1,
            guesses=now.guesses.at[:, now.done].set(found.tokens[:, 0]),
            confidence=now.confidence.at[:, now.done].set(found.confidence[:, 0]),
        )
