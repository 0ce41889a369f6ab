"""The load of the next step: its live slots, the value of their tokens, and their cached tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.state import DecodeState

# The approximate number of cached tokens that attention reads as one block. Reading part of a block
# costs as much as reading all of it.
KV_BLOCK = 256

# The value of a slot's tokens is its share of the remaining steps, raised to at most this power.
# The higher it is, the less the tokens of slots that will finish early count.
URGENCY = 6
# Each text is assumed to have begun with this many steps of one token, until its own pace shows.
PACE_STEPS = 8


class Load(NamedTuple):
    """What a step carries, whichever draft tokens it verifies.

    Attributes:
      live: int32[], number of slots that emit.
      values: float32[B], the value of each slot's next token, at most 1; 0 for an idle slot.
      cached: int32[], cached tokens of all live slots, in whole blocks of `KV_BLOCK`.
    """

    live: jax.Array
    values: jax.Array
    cached: jax.Array


def load_of(state: DecodeState, others_wait: jax.Array | bool) -> Load:
    """Returns the load of the next step.

    Args:
      state: the state of all slots.
      others_wait: bool[], whether requests wait for a slot.
    """
    blocks = (state.kv_lens + KV_BLOCK - 1) // KV_BLOCK
    cached = jnp.where(state.live, KV_BLOCK * blocks, 0).sum(dtype=jnp.int32)
    return Load(state.live.sum(dtype=jnp.int32), _values(state, others_wait), cached)


def _values(state: DecodeState, others_wait: jax.Array | bool) -> jax.Array:
    """Returns the value of a token of each slot, float32[B].

    While requests wait for a slot, the tokens of all slots have the same value, because any slot
    that finishes early is refilled. Once none waits, the batch ends with its last text. A slot that
    is going to need fewer steps than the slowest one, at its pace so far, then has less valuable
    tokens. The difference grows as the slowest slot approaches its limit.
    """
    left = jnp.where(state.live, state.max_lens - state.lens, 0).astype(jnp.float32)
    written = jnp.maximum(state.lens - state.prompt_lens, 0).astype(jnp.float32)
    taken = state.stats.target_steps.astype(jnp.float32)
    steps = left * (taken + PACE_STEPS) / (written + PACE_STEPS)
    last = jnp.argmax(steps)
    # Most texts end before their limit. Far from it, nobody knows which text will be the last.
    known = jnp.sqrt(written[last] / jnp.maximum(written[last] + left[last], 1.0))
    share = (steps / jnp.maximum(steps[last], 1e-6)) ** (URGENCY * known)
    share = jnp.where(state.live, share, 0.0)
    return jnp.where(others_wait, state.live.astype(jnp.float32), share)
