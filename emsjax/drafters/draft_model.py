"""Drafts by a smaller model with the same vocabulary (Leviathan et al., arXiv 2211.17192).

The draft model has a separate cache, which holds the K/V of every token that the model has read. It
never reads its last draft token. After a fully accepted draft one entry is therefore missing, and
the first pass of the next draft fills it in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.drafters.token_by_token import Drafting
from emsjax.engine.acceptance import expect
from emsjax.engine.devices import CACHE, SAME, bytes_of_device
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, WorthDrafting
from emsjax.engine.ladder import row_capacity
from emsjax.engine.model import Model
from emsjax.engine.packing import Guesses, pack
from emsjax.engine.sizes import Exchange
from emsjax.engine.state import DecodeState, copy_prefix
from emsjax.engine.step_costs import Passes
from emsjax.sampling.guess import guess
from emsjax.sampling.rows import rows_after
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

# The most unread tokens with which a slot may draft: its newest token, and the last draft token of
# a fully accepted draft.
READY = 2


class DraftModelState(NamedTuple):
    """The draft model's cache, and its last draft for each slot.

    Attributes:
      cache: K/V of the draft model, [Ld, B, S, R, 128].
      kv_lens: int32[B], how many tokens of the slot are in the cache, if all guesses were right.
      guesses: int32[B, k], the last draft.
      guessed_from: int32[B], the position of its first token; S if nothing was drafted.
    """

    cache: Any
    kv_lens: jax.Array
    guesses: jax.Array
    guessed_from: jax.Array


@dataclass(frozen=True)
class DraftModel:
    """Drafts token by token, for all slots at once, in packed rows.

    Attributes:
      name: name of the draft model, for display and for the table of step costs.
      weights: the model's parameters.
      merge: builds the model from its parameters.
      vocab_size: V of the target.
      draft_length: k.
      prefill_chunk: the most prompt tokens that are read in one step.
      narrowest: the fewest rows that are worth a separate shape, apart from a single row.
      vocabulary: which tokens the model's logits are of. If it is divided, so is the model.
      exchanges: what devices exchange in a pass, if the model is divided.
    """

    name: str
    weights: Any = field(repr=False)
    merge: Callable[[Any], Model] = field(repr=False)
    vocab_size: int
    draft_length: int = 4
    prefill_chunk: int = 256
    narrowest: int = 8
    vocabulary: Vocabulary = WHOLE
    exchanges: tuple[Exchange, ...] = ()
    hidden_size: int = field(default=0, init=False)
    hidden_layers: tuple[int, ...] = field(default=(), init=False)

    @property
    def read_bytes(self) -> int:
        """Bytes of all weights that a device has."""
        return bytes_of_device(self.weights)

    def passes(self, num_slots: int) -> Passes:
        """Returns that a pass of all layers guesses one token."""
        del num_slots
        return Passes(self.draft_length, exchanges=self.exchanges)

    @property
    def state_places(self) -> Any:
        """The place of its state on devices that share the target."""
        cache: Any = SAME if self.vocabulary is WHOLE else CACHE
        same: Any = SAME
        return DraftModelState(cache, same, same, same)

    def init(self, num_slots: int, capacity: int) -> DraftModelState:
        """Returns a state with an empty cache."""
        spec = self.merge(self.weights).cache_spec(num_slots, capacity)
        nothing = jnp.zeros(num_slots, jnp.int32)
        guesses = jnp.zeros((num_slots, self.draft_length), jnp.int32)
        return DraftModelState(
            jax.tree.map(jnp.zeros_like, spec), nothing, guesses, nothing + capacity
        )

    def admit(self, drafter_state: DraftModelState, slot: jax.Array) -> DraftModelState:
        """Returns the state after a slot has received a new request, of which nothing is cached."""
        return drafter_state._replace(kv_lens=drafter_state.kv_lens.at[slot].set(0))

    def share(
        self,
        drafter_state: DraftModelState,
        slot: jax.Array,
        source: jax.Array,
        length: jax.Array,
    ) -> DraftModelState:
        """Returns the state after a new request, with what `source` has read of it cached."""
        mine = drafter_state
        # K/V from the first guess on may be those of a guess that did not become text.
        known = jnp.minimum(mine.kv_lens[source], mine.guessed_from[source])
        read = jnp.minimum(known, length)
        copied = jnp.where(source == slot, 0, read)
        return DraftModelState(
            copy_prefix(mine.cache, source, slot, copied),
            mine.kv_lens.at[slot].set(read),
            mine.guesses,
            mine.guessed_from.at[slot].set(mine.cache.shape[2]),
        )

    def propose(
        self, state: DecodeState, weights: Any, worth: WorthDrafting
    ) -> tuple[Draft, DraftModelState]:
        """Reads the tokens that it has missed, and drafts for each slot that is up to date."""
        model, mine = self.merge(weights), _without_wrong_guesses(state.drafter, state)
        likely = expect(state.experience, COSTLY_SOURCE, self.draft_length)
        survival = jnp.where(state.live[:, None], jnp.cumprod(likely, axis=1), 0.0)
        length = worth(survival)
        mine = self._catch_up(model, state, mine, wanted=length > 0)
        unread = state.lens - mine.kv_lens
        ready = state.live & (unread <= READY) & (state.lens - state.kv_lens == 1)
        room = jnp.maximum(state.max_lens - state.lens - 1, 0)
        lens = jnp.where(ready, jnp.minimum(length, room), 0)
        drafted = self._draft(model, state, mine, lens)
        fed = jnp.where(lens > 0, state.lens + lens - 1, mine.kv_lens)
        begun = jnp.where(lens > 0, state.lens, state.tokens.shape[1])
        source = jnp.full_like(drafted.guesses, COSTLY_SOURCE)
        draft = Draft(drafted.guesses, lens, drafted.confidence, source)
        return draft, DraftModelState(drafted.cache, fed, drafted.guesses, begun)

    def _catch_up(
        self, model: Model, state: DecodeState, mine: DraftModelState, wanted: jax.Array
    ) -> DraftModelState:
        """Reads one chunk of missed tokens, for slots with more than `READY` unread ones."""
        lag = jnp.where(state.live, state.lens - 1 - mine.kv_lens, 0)
        missed = jnp.where(lag + 1 > READY, lag, 0)
        taken = jnp.minimum(jnp.cumsum(missed, dtype=jnp.int32), self.prefill_chunk)
        q_lens = jnp.diff(taken, prepend=jnp.zeros(1, jnp.int32))

        # A while loop of at most one trip, because a `cond` would copy the cache, see `loop`.
        def is_pending(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
            return carry[0]

        def read(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            batch = pack(state.tokens, mine.kv_lens, q_lens, self.prefill_chunk)
            _, cache = model(batch, carry[1], max_q_len=self.prefill_chunk)
            return jnp.zeros_like(carry[0]), cache

        pending = wanted & (q_lens > 0).any()
        _, cache = jax.lax.while_loop(is_pending, read, (pending, mine.cache))
        read_lens = jnp.where(wanted, mine.kv_lens + q_lens, mine.kv_lens)
        return mine._replace(cache=cache, kv_lens=read_lens)

    def _draft(
        self, model: Model, state: DecodeState, mine: DraftModelState, lens: jax.Array
    ) -> Drafting:
        """Drafts `lens` int32[B] tokens for the slots."""
        num_slots = lens.shape[0]
        drafted = Drafting.begin(num_slots, self.draft_length, mine.cache)
        unread = jnp.where(lens > 0, state.lens - mine.kv_lens, 0)
        # The first loop runs only for a first token, and only if some slot has two unread tokens.
        # All other passes need one row per slot, which is a cheaper shape.
        for rows in (READY, 1):
            capacity = row_capacity(num_slots * rows, self.narrowest)

            def keep_going(now: Drafting, rows: int = rows) -> jax.Array:
                more = (now.done < lens).any()
                return more & (now.done == 0) & (unread.max() > 1) if rows > 1 else more

            def step(now: Drafting, rows: int = rows, capacity: int = capacity) -> Drafting:
                q_lens = jnp.where(now.done < lens, jnp.where(now.done == 0, unread, 1), 0)
                starts = state.lens + now.done - q_lens
                guesses = Guesses(now.guesses, state.lens)
                batch = pack(state.tokens, starts, q_lens, capacity, guesses)
                hidden, cache = model(batch, now.cache, max_q_len=rows)
                newest = hidden[jnp.maximum(batch.cu_q_lens[1:] - 1, 0)]
                return self._guess(now._replace(cache=cache), model.logits(newest), state)

            drafted = jax.lax.while_loop(keep_going, step, drafted)
        return drafted

    def _guess(self, now: Drafting, logits: jax.Array, state: DecodeState) -> Drafting:
        """Adds one guess per slot, chosen as the target will choose, with the same noise."""
        logits = self.vocabulary.fitted(logits, self.vocab_size)
        rows = rows_after(state.tokens, state.lens, now.guesses, now.done)
        found = guess(logits, rows, state, vocabulary=self.vocabulary)
        return now.add(found)


def _without_wrong_guesses(mine: DraftModelState, state: DecodeState) -> DraftModelState:
    """Returns the state without K/V of guesses that did not become text.

    The guesses are compared with the text. The number of accepted tokens would not do, because the
    draft that was verified may be another drafter's, see `Combined`.
    """
    capacity = state.tokens.shape[1]
    steps = jnp.arange(mine.guesses.shape[1], dtype=jnp.int32)[None]
    places = mine.guessed_from[:, None] + steps
    text = jnp.take_along_axis(state.tokens, jnp.minimum(places, capacity - 1), axis=1)
    right = (places < state.lens[:, None]) & (text == mine.guesses)
    right = jnp.cumprod(right, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)
    known = jnp.minimum(mine.guessed_from + right, state.lens - 1)
    return mine._replace(kv_lens=jnp.minimum(mine.kv_lens, known))
