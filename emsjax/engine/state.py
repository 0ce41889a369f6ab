"""The state of the decode loop: everything that changes from step to step, on the device."""

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotStats:
    """What happened to the request in each slot, for its metrics.

    Attributes:
      target_steps: int32[B], steps that emitted tokens for it.
      prefill_steps: int32[B], earlier steps that only read its prompt.
      drafted: int32[B, k], how often a draft token at this position was verified.
      accepted: int32[B, k], how often such a token was accepted and emitted.
      rows: int32[B], rows computed for it in those steps, padding included.
      padded: int32[B], how many of them were padding.
      cached: float32[B], places of its cache that those steps read, holes included: more than
        int32 can count in long texts, and exact below 2**24.
      empty: float32[B], how many of them were holes.
    """

    target_steps: jax.Array
    prefill_steps: jax.Array
    drafted: jax.Array
    accepted: jax.Array
    rows: jax.Array
    padded: jax.Array
    cached: jax.Array
    empty: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """State of all slots. Prefill and decode differ only in how far `kv_lens` is behind `lens`.

    Attributes:
      cache: K/V [L, B, S, R, 128]; only `[:kv_lens[b]]` of slot b means anything.
      tokens: int32[B, S], prompt and output; entries from `lens` on are guesses or garbage.
      emitted_at: int32[B, S], the target step of its request that emitted each token, from 1 on;
        of the prompt's tokens it means nothing.
      lens: int32[B], known tokens of each slot.
      kv_lens: int32[B], tokens whose K/V is in the cache; less than `lens` for a live slot.
      prompt_lens: int32[B], how many of `lens` came with the request.
      max_lens: int32[B], the slot is finished once `lens` gets there; at most S.
      stop_ids: int32[B, E], tokens that finish the slot, filled up with -1.
      live: bool[B], whether the slot is being worked on.
      drafter: the drafter's own state.
      stats: see `SlotStats`.
      experience: what came of the drafts so far, see `acceptance`.
      hidden: [B, D], the target's hidden state from which each slot's newest token was chosen;
        None where the drafter does not read it.
      sampling: see `SamplingState`; None where every slot takes the likeliest token.
      holes: those of an aligned cache; None where every slot's has its own length.
      drafts: int32[B, k, S], what each step drafted, see `draft_record`; None where nobody asked.
    """

    cache: jax.Array
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
    cache: jax.Array,
    draft_length: int,
    drafter: Any,
    hidden: jax.Array | None = None,
    holes: Holes | None = None,
) -> DecodeState:
    """B idle slots of S tokens, taken from the shape of `cache`."""
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
) -> DecodeState:
    """Puts a request into a free slot; what the slot held before is overwritten in time.

    Args:
      state: of all slots.
      slot: int32[], the slot to fill.
      prompt: int32[S], garbage behind `prompt_len`.
      prompt_len: int32[].
      cached: int32[], tokens of the prompt whose K/V is in the slot's cache already; less than
        `prompt_len`.
      max_len: int32[], prompt and output together, at most S.
      stop_ids: int32[E].
      choice: how its tokens are chosen; the likeliest ones where `state.sampling` is None.
    """
    sampling = state.sampling
    if sampling is not None:
        sampling = admit_choice(sampling, slot, choice, prompt, prompt_len)
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


def copy_cache(cache: jax.Array, source: jax.Array, slot: jax.Array) -> jax.Array:
    """The cache [L, B, S, ...] with the slot's K/V replaced by those of another slot.

    Layer by layer: all of it at once would need room for another slot.

    Args:
      cache: of all slots.
      source: int32[], the slot to copy from.
      slot: int32[], the slot to copy to.
    """

    def copy_layer(layer: jax.Array, cache: jax.Array) -> jax.Array:
        rest = (0,) * (cache.ndim - 2)
        size = (1, 1, *cache.shape[2:])
        there = jax.lax.dynamic_slice(cache, (layer, source, *rest), size)
        return jax.lax.dynamic_update_slice(cache, there, (layer, slot, *rest))

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(cache.shape[0]), copy_layer, cache)
