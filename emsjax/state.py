"""The state of the decode loop: everything that changes from step to step, on the device."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

# Stop tokens a slot can hold; shorter lists are filled up with -1, which is no token.
MAX_STOP_IDS = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotStats:
    """What happened to the request in each slot, for its metrics.

    Attributes:
      target_steps: int32[B], steps that emitted tokens for it.
      prefill_steps: int32[B], earlier steps that only read its prompt.
      drafted: int32[B, k], how often a draft token at this position was verified.
      accepted: int32[B, k], how often such a token was accepted and emitted.
    """

    target_steps: jax.Array
    prefill_steps: jax.Array
    drafted: jax.Array
    accepted: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """State of all slots. Prefill and decode differ only in how far `kv_lens` is behind `lens`.

    Attributes:
      cache: K/V [L, B, S, R, 128]; only `[:kv_lens[b]]` of slot b means anything.
      tokens: int32[B, S], prompt and output; entries from `lens` on are guesses or garbage.
      lens: int32[B], known tokens of each slot.
      kv_lens: int32[B], tokens whose K/V is in the cache; less than `lens` for a live slot.
      prompt_lens: int32[B], how many of `lens` came with the request.
      max_lens: int32[B], the slot is finished once `lens` gets there; at most S.
      stop_ids: int32[B, E], tokens that finish the slot, filled up with -1.
      live: bool[B], whether the slot is being worked on.
      drafter: the drafter's own state.
      stats: see `SlotStats`.
    """

    cache: jax.Array
    tokens: jax.Array
    lens: jax.Array
    kv_lens: jax.Array
    prompt_lens: jax.Array
    max_lens: jax.Array
    stop_ids: jax.Array
    live: jax.Array
    drafter: Any
    stats: SlotStats

    def replace(self, **changes: Any) -> "DecodeState":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def empty_state(cache: jax.Array, draft_length: int, drafter: Any) -> DecodeState:
    """B idle slots of S tokens, taken from the shape of `cache`."""
    num_slots, capacity = cache.shape[1:3]

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((num_slots, *shape), jnp.int32)

    return DecodeState(
        cache=cache,
        tokens=zeros(capacity),
        lens=zeros(),
        kv_lens=zeros(),
        prompt_lens=zeros(),
        max_lens=zeros(),
        stop_ids=zeros(MAX_STOP_IDS),
        live=jnp.zeros(num_slots, jnp.bool),
        drafter=drafter,
        stats=SlotStats(zeros(), zeros(), zeros(draft_length), zeros(draft_length)),
    )


def admit(
    state: DecodeState,
    slot: jax.Array,
    prompt: jax.Array,
    prompt_len: jax.Array,
    max_len: jax.Array,
    stop_ids: jax.Array,
) -> DecodeState:
    """Puts a request into a free slot; what the slot held before is overwritten in time.

    Args:
      state: of all slots.
      slot: int32[], the slot to fill.
      prompt: int32[S], garbage behind `prompt_len`.
      prompt_len: int32[].
      max_len: int32[], prompt and output together, at most S.
      stop_ids: int32[E].
    """
    cleared = jax.tree.map(lambda x: x.at[slot].set(0), state.stats)
    return state.replace(
        tokens=state.tokens.at[slot].set(prompt),
        lens=state.lens.at[slot].set(prompt_len),
        kv_lens=state.kv_lens.at[slot].set(0),
        prompt_lens=state.prompt_lens.at[slot].set(prompt_len),
        max_lens=state.max_lens.at[slot].set(max_len),
        stop_ids=state.stop_ids.at[slot].set(stop_ids),
        live=state.live.at[slot].set(True),
        stats=cleared,
    )
