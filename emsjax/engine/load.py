"""What the next step must carry: its live slots, the value of their tokens, their cached tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.state import DecodeState

# Tokens of a slot's cache that attention reads together, about: part of a block costs as much as
# all of it.
KV_BLOCK = 256

# The power of a slot's share of the remaining steps that its tokens are worth: how much less the
# tokens of slots that will finish early matter.
URGENCY = 6
# Each text is assumed to begin with this many steps of one token, until its own pace shows.
PACE_STEPS = 8


class Load(NamedTuple):
    """What a step carries, whatever is verified in it.

    Attributes:
      live: int32[], slots that emit.
      values: float32[B], what the next token of each slot is worth, at most 1; 0 for an idle slot.
      cached: int32[], cached tokens of all live slots, in whole blocks of `KV_BLOCK`.
    """

    live: jax.Array
    values: jax.Array
    cached: jax.Array


def load_of(state: DecodeState, others_wait: jax.Array | bool) -> Load:
    """The load of the next step.

    Args:
      state: of all slots.
      others_wait: bool[], whether requests wait for a slot.
    """
    blocks = (state.kv_lens + KV_BLOCK - 1) // KV_BLOCK
    cached = jnp.where(state.live, KV_BLOCK * blocks, 0).sum(dtype=jnp.int32)
    return Load(state.live.sum(dtype=jnp.int32), _values(state, others_wait), cached)


def _values(state: DecodeState, others_wait: jax.Array | bool) -> jax.Array:
    """The value of a token of each slot, float32[B].

    While requests wait for a slot, all slots' tokens are worth the same. Once none waits, the batch
    ends with its last text. So if a slot will need fewer steps than another at its pace so far, its
    tokens matter less, and all the less the closer that other slot is to its limit.
    """
    left = jnp.where(state.live, state.max_lens - state.lens, 0).astype(jnp.float32)
    written = jnp.maximum(state.lens - state.prompt_lens, 0).astype(jnp.float32)
    taken = state.stats.target_steps.astype(jnp.float32)
    steps = left * (taken + PACE_STEPS) / (written + PACE_STEPS)
    last = jnp.argmax(steps)
    # Most texts end before their limit: far from it, nobody knows which one will be the last.
    known = jnp.sqrt(written[last] / jnp.maximum(written[last] + left[last], 1.0))
    share = (steps / jnp.maximum(steps[last], 1e-6)) ** (URGENCY * known)
    share = jnp.where(state.live, share, 0.0)
    return jnp.where(others_wait, state.live.astype(jnp.float32), share)
