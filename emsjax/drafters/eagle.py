"""Drafts by an EAGLE head, see `models.eagle_head`, or an MTP module, see `models.mtp_head`.

The head has K/V of its own for every token of which the target has K/V, at the same places. It
reads the rows of a step right after the target, those of prompts too: by then the token after each
row is known, or the target has just chosen it. So the head never lags behind, what it wrote for
rejected draft tokens is overwritten as in the target's cache, and a draft begins with a state that
is already there.

A draft may branch. Then each pass runs one row for each open path, and writes its K/V behind those
of the passes before. A row attends to the text and to the rows on its own path. These K/V are never
kept: the head reads the accepted tokens again, with the target's states instead of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from emsjax.drafters.beam import Beam, choices_of, draft_of, grow, prefixes, start, width_of
from emsjax.drafters.frequent import guess_frequent
from emsjax.drafters.from_states import FromStates
from emsjax.drafters.own_cache import CachedHead, OwnCache
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Observation, WorthDrafting
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import row_capacity
from emsjax.engine.model import Model
from emsjax.engine.packing import PackedBatch, pack
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import Passes
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

# The most rows of a slot's draft, each of which has a bit in 32.
_ROWS = 32


class Head(CachedHead, Protocol):
    """The part of `EagleHead` that the drafter uses."""

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


class Parts(NamedTuple):
    """What the drafter computes with, as arrays.

    Attributes:
      head: parameters of the head.
      embedding: the target's token embedding, not a copy. Devices may share it.
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


class Ends(NamedTuple):
    """The ends of W open paths in every slot.

    Attributes:
      states: [B, W, D], the head's state from which the next token is guessed.
      rows: uint32[B, W], bit r is set if the draft's row r is on the path. The first guesses follow
        from states that are already there, so their rows are the first to run.
    """

    states: jax.Array
    rows: jax.Array


class Drafting(NamedTuple):
    """The carry of the loop over draft tokens: the open paths, and the head's K/V."""

    beam: Beam
    cache: Any


@dataclass(frozen=True)
class Eagle(OwnCache, FromStates):
    """Drafts for all slots at once, token by token. Its state is the head's K/V.

    Attributes:
      name: name of the head, for display and for the table of step costs.
      weights: see `Parts`.
      merge: builds the head, and the target if its parameters are given, from parameters.
      vocab_size: V of the target.
      hidden_size: D, the width of the head's states.
      hidden_layers: the target's layers whose inputs the head reads, see `Drafter.hidden_layers`.
      read_bytes: bytes of weights that a pass reads.
      output_bytes: the bytes of these that turn states into logits.
      observed_bytes: bytes of weights with which `observe` multiplies rows.
      draft_length: k.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
      beam_rows: the most rows of a pass for which a slot's draft branches. With more slots, drafts
        are chains.
      vocabulary: which tokens the logits are of, if they may be of all.
    """

    name: str
    weights: Parts = field(repr=False)
    merge: Callable[[Any, Any], tuple[Head, Model | None]] = field(repr=False)
    vocab_size: int
    hidden_size: int
    hidden_layers: tuple[int, ...]
    read_bytes: int
    output_bytes: int
    observed_bytes: int = 0
    draft_length: int = 7
    narrowest: int = 8
    beam_rows: int = 1
    vocabulary: Vocabulary = WHOLE
    # The first guesses follow from states that are already there.
    _spared: ClassVar[int] = 1

    def passes(self, num_slots: int) -> Passes:
        """Returns that a pass continues all paths by a token, as far as there are bits for rows."""
        width = width_of(self.beam_rows, num_slots)
        deepest = self._spared + _ROWS // width if width > 1 else self.draft_length
        return Passes(
            min(self.draft_length, deepest),
            rows=width,
            spared=self._spared,
            share=1 - self.output_bytes / self.read_bytes,
            observing=self.observed_bytes,
        )

    def built(self) -> Head:
        """Returns the head."""
        return self.merge(self.weights.head, self.weights.target)[0]

    def observe(
        self, drafter_state: Any, weights: Parts, seen: Observation
    ) -> tuple[Any, jax.Array]:
        """Reads the rows of a step; returns the cache, and the head's states of the rows."""
        head, _ = self.merge(weights.head, weights.target)
        states, embedded = head.fuse(seen.hidden), head.embed(seen.following, weights.embedding)
        states, cache = head(seen.batch, states, embedded, drafter_state, max_q_len=seen.max_q_len)
        return cache, states

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts for each slot that has emitted its first token."""
        assert state.hidden is not None
        ready, length = self.plan(state, worth)
        num_slots = ready.shape[0]
        passes = self.passes(num_slots)
        width = passes.rows
        # Rows have places in the cache only as far as the text may grow, and branches only as far
        # as the cache reaches.
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        if width > 1:
            room = jnp.minimum(room, (state.tokens.shape[1] - state.lens + 1) // width + 1)
        depths = jnp.where(ready, jnp.minimum(jnp.minimum(length, room), passes.depth), 0)
        begin = Ends(state.hidden, jnp.zeros(num_slots, jnp.uint32))
        beam = start(begin, num_slots, passes.depth, width)
        drafted = jax.lax.while_loop(
            lambda now: (now.beam.done < depths).any(),
            lambda now: self._guess(self._continued(now, state, weights, depths), state, weights),
            Drafting(beam, state.drafter),
        )
        return draft_of(drafted.beam, depths, self.draft_length), drafted.cache

    def _continued(
        self, now: Drafting, state: DecodeState, weights: Parts, depths: jax.Array
    ) -> Drafting:
        """Runs a row for the newest guess of each path; nothing before the first one."""
        num_slots, width = now.beam.shares.shape
        head, _ = self.merge(weights.head, weights.target)
        newest = prefixes(now.beam, state).tokens

        def run(carry: tuple[jax.Array, Ends, Any]) -> tuple[jax.Array, Ends, Any]:
            pending, ends, cache = carry
            capacity = row_capacity(num_slots * width, self.narrowest)
            # The row of a guess stands where the target will have the token before it.
            position = jnp.maximum(state.lens - 2 + now.beam.done, 0)
            first = (now.beam.done - 1) * width
            starts = jnp.maximum(state.lens - 1 + first, 0)
            q_lens = jnp.where(now.beam.done < depths, width, 0)
            batch = pack(state.tokens, starts, q_lens, capacity)
            slots = jnp.minimum(batch.slot_ids, num_slots - 1)
            row = jnp.arange(capacity, dtype=jnp.int32) - batch.cu_q_lens[slots]
            path = jnp.clip(slots * width + row, 0, num_slots * width - 1)
            mine = (first + jnp.arange(width, dtype=jnp.int32)).astype(jnp.uint32)
            rows = ends.rows | jnp.uint32(1) << mine[None]
            if width > 1:
                batch = batch._replace(
                    positions=position[slots],
                    ancestors=rows.reshape(-1)[path],
                    tree_starts=jnp.maximum(state.lens - 1, 0),
                )
            batch = batch if state.holes is None else after_holes(batch, state.holes)
            embedded = head.embed(newest[path], weights.embedding)
            states = ends.states.reshape(num_slots * width, -1)[path]
            found, cache = head(batch, states, embedded, cache, max_q_len=width)
            own = batch.cu_q_lens[:-1, None] + jnp.arange(width, dtype=jnp.int32)[None]
            found = found[jnp.minimum(own, capacity - 1)]
            return jnp.zeros_like(pending), Ends(found, rows), cache

        # A while loop of at most one trip, because a `cond` would copy the cache, see `loop`.
        carry = (self._reads(now, depths), now.beam.ends_state, now.cache)
        _, ends, cache = jax.lax.while_loop(lambda carry: carry[0], run, carry)
        return Drafting(now.beam._replace(ends_state=ends), cache)

    def _reads(self, now: Drafting, depths: jax.Array) -> jax.Array:
        """Returns whether the newest guesses need rows, bool[]."""
        del depths
        return now.beam.done > 0

    def _guess(self, now: Drafting, state: DecodeState, weights: Parts) -> Drafting:
        """Adds guesses to each path, chosen as the target will choose, with the same noise."""
        ends: Ends = now.beam.ends_state
        num_slots, width, _ = ends.states.shape
        logits = self._logits(ends.states.reshape(num_slots * width, -1), weights)
        rows, count = prefixes(now.beam, state), choices_of(width)
        found = guess_frequent(
            logits, weights.token_ids, rows, state, self.vocab_size, count, self.vocabulary
        )
        return Drafting(grow(now.beam, ends, found), now.cache)

    def _logits(self, states: jax.Array, weights: Parts) -> jax.Array:
        """Returns logits float32[W, Vd] of states [W, D]."""
        head, target = self.merge(weights.head, weights.target)
        logits = head.logits(states)
        if logits is None:
            assert target is not None
            logits = target.logits(states, weights.some)
        return logits

    def likeliest(self, states: jax.Array, weights: Parts) -> jax.Array:
        """Returns the likeliest tokens int32[W] after states [W, D] of `observe`."""
        found, _ = self.vocabulary.first_max(self._logits(states, weights))
        return found if weights.token_ids is None else weights.token_ids[found]
