"""The state of the decode loop: all arrays that change from step to step, kept on the device."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import Experience, forget, no_experience
from emsjax.engine.holes import Holes, fill
from emsjax.limits import MAX_STOP_IDS
from emsjax.sampling.choice import Choice
from emsjax.sampling.state import SamplingState, admit_choice

# The tokens of a block that `copy_prefix` copies at a time.
COPIED_TOKENS = 256


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotStats:
    """Counters of the request in each slot, for its metrics.

    `rows`, `padded`, `cached` and `empty` leave out steps that read the prompt.

    Attributes:
      target_steps: int32[B], steps that emitted tokens.
      prefill_steps: int32[B], earlier steps that only read the prompt.
      drafted: int32[B, k], how often the draft token at each position was verified.
      accepted: int32[B, k], how often it was accepted and emitted.
      rows: int32[B], rows computed, padding included.
      padded: int32[B], how many of these rows were padding.
      cached: float32[B], cache positions read, holes included. In long texts this exceeds int32. It
        is exact below 2**24.
      empty: float32[B], how many of these positions were holes.
      failed: int32[B], 1 if the request has ended because the target's logits left no choice.
    """

    target_steps: jax.Array
    prefill_steps: jax.Array
    drafted: jax.Array
    accepted: jax.Array
    rows: jax.Array
    padded: jax.Array
    cached: jax.Array
    empty: jax.Array
    failed: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """The state of all slots.

    Prefill and decode differ only in how far `kv_lens` lags behind `lens`. In a slot that decodes
    it is `lens - 1`: the newest token is known, and its K/V will be written in the next step. In a
    slot that reads its prompt the difference is larger.

    Attributes:
      cache: K/V [L, B, S, R, 128]; only the first `kv_lens[b]` positions of slot b have a meaning.
      tokens: int32[B, S], prompt and output; entries from `lens` on have no meaning.
      emitted_at: int32[B, S], the number of the target step of its request that emitted each token,
        counted from 1; meaningless for tokens of the prompt.
      lens: int32[B], known tokens of each slot.
      kv_lens: int32[B], tokens whose K/V is in the cache; less than `lens` for a live slot.
      prompt_lens: int32[B], tokens of the prompt.
      max_lens: int32[B], the value of `lens` at which the slot is finished; at most S.
      stop_ids: int32[B, E], tokens that finish the slot, padded with -1.
      live: bool[B], whether the slot holds an unfinished request.
      drafter: the drafter's state.
      stats: see `SlotStats`.
      experience: the outcome of all drafts so far, see `acceptance`.
      hidden: [B, D], the target's hidden state from which each slot's newest token was chosen, or
        its states in inner layers (`Drafter.hidden_layers`), or what a drafter made of these
        (`Observing`); None if the drafter reads none.
      sampling: see `SamplingState`; None if every slot takes the likeliest token.
      holes: the holes of an aligned cache; None if each slot's cache has its own length.
      drafts: int32[B, k, S], the draft tokens of each step, see `trace_record`; None without
        traces.
    """

    cache: Any
    tokens: jax.Array
    emitted_at: jax.Array
    lens: jax.Array
    kv_lens: jax.Array
    prompt_lens: jax.Array
    max_lens: jax.Array
    stop_ids: jax.Array
    live: jax.Array
    drafter: Any
    stats: SlotStats
    experience: Experience
    hidden: jax.Array | None = None
    sampling: SamplingState | None = None
    holes: Holes | None = None
    drafts: jax.Array | None = None

    def replace(self, **changes: Any) -> "DecodeState":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def empty_state(
    cache: Any,
    draft_length: int,
    drafter: Any,
    hidden: jax.Array | None = None,
    holes: Holes | None = None,
) -> DecodeState:
    """Returns a state of idle slots; the shape of `cache` determines B and S."""
    num_slots, capacity = cache.shape[1:3]

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((num_slots, *shape), jnp.int32)

    return DecodeState(
        cache=cache,
        tokens=zeros(capacity),
        emitted_at=zeros(capacity),
        lens=zeros(),
        kv_lens=zeros(),
        prompt_lens=zeros(),
        max_lens=zeros(),
        stop_ids=zeros(MAX_STOP_IDS),
        live=jnp.zeros(num_slots, jnp.bool),
        drafter=drafter,
        stats=SlotStats(
            target_steps=zeros(),
            prefill_steps=zeros(),
            drafted=zeros(draft_length),
            accepted=zeros(draft_length),
            rows=zeros(),
            padded=zeros(),
            cached=jnp.zeros(num_slots, jnp.float32),
            empty=jnp.zeros(num_slots, jnp.float32),
            failed=zeros(),
        ),
        experience=no_experience(num_slots),
        hidden=hidden,
        holes=holes,
    )


def admit(
    state: DecodeState,
    slot: jax.Array,
    prompt: jax.Array,
    prompt_len: jax.Array,
    cached: jax.Array,
    max_len: jax.Array,
    stop_ids: jax.Array,
    choice: Choice,
    first_row: jax.Array | None = None,
) -> DecodeState:
    """Puts a request into a free slot.

    The slot's cache is not cleared. Nothing past `kv_lens` is read before it is overwritten.

    Args:
      state: the state of all slots.
      slot: int32[], the slot to fill.
      prompt: int32[S]; entries from `prompt_len` on have no meaning.
      prompt_len: int32[].
      cached: int32[], tokens of the prompt whose K/V is already in the slot's cache; less than
        `prompt_len`.
      max_len: int32[], the most tokens of prompt and output together, at most S.
      stop_ids: int32[E], padded with -1.
      choice: how the request's tokens are chosen; ignored if `state.sampling` is None, when every
        slot takes the likeliest token.
      first_row: int32[], where the request's grammar begins, see `admit_choice`.
    """
    sampling = state.sampling
    if sampling is not None:
        sampling = admit_choice(sampling, slot, choice, prompt, prompt_len, first_row)
    holes = None if state.holes is None else fill(state.holes, slot)
    cleared = jax.tree.map(lambda x: x.at[slot].set(0), state.stats)
    return state.replace(
        tokens=state.tokens.at[slot].set(prompt),
        lens=state.lens.at[slot].set(prompt_len),
        kv_lens=state.kv_lens.at[slot].set(cached),
        prompt_lens=state.prompt_lens.at[slot].set(prompt_len),
        max_lens=state.max_lens.at[slot].set(max_len),
        stop_ids=state.stop_ids.at[slot].set(stop_ids),
        live=state.live.at[slot].set(True),
        stats=cleared,
        experience=forget(state.experience, slot),
        sampling=sampling,
        holes=holes,
    )


def copy_prefix(cache: Any, source: jax.Array, slot: jax.Array, length: jax.Array) -> Any:
    """Returns the cache with the beginning of one slot's K/V replaced by that of another.

    The copy goes layer by layer and block by block. Copying all layers at once would need memory
    for another slot.

    Args:
      cache: the cache of all slots, arrays [L, B, ...] of which most have S as their third axis.
      source: int32[], the slot to copy from.
      slot: int32[], the slot to copy to.
      length: int32[], the tokens to copy. Those after them may change too, up to the end of a
        block, and have no meaning then.
    """
    capacity = cache.shape[2]

    def copy_array(array: jax.Array) -> jax.Array:
        # Scales of an int8 cache have another layout, and are copied as a whole.
        block = min(COPIED_TOKENS, capacity) if array.shape[2] == capacity else array.shape[2]
        blocks = (length + block - 1) // block if block < array.shape[2] else jnp.int32(1)
        size = (1, 1, block, *array.shape[3:])

        def copy_block(number: jax.Array, array: jax.Array) -> jax.Array:
            layer, start = number // blocks, (number % blocks) * block
            # The last block of a full slot begins earlier, at the same place in both slots.
            rest = (0,) * (array.ndim - 3)
            there = jax.lax.dynamic_slice(array, (layer, source, start, *rest), size)
            return jax.lax.dynamic_update_slice(array, there, (layer, slot, start, *rest))

        return jax.lax.fori_loop(jnp.int32(0), array.shape[0] * blocks, copy_block, array)

    return jax.tree.map(copy_array, cache)
