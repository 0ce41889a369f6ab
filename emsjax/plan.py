"""Planning a step: how many rows each slot gets, and on which rung of the ladder."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.drafters.base import Draft
from emsjax.ladder import Rung, first_fit
from emsjax.state import DecodeState


class Plan(NamedTuple):
    """What the step computes.

    Attributes:
      q_lens: int32[B], rows of each slot: known tokens without K/V, then draft tokens.
      draft_lens: int32[B], how many of them are draft tokens.
      complete: bool[B], the slot's known tokens all have K/V after this step, so that it emits.
      rung: int32[], index into the ladder.
    """

    q_lens: jax.Array
    draft_lens: jax.Array
    complete: jax.Array
    rung: jax.Array


def make_plan(state: DecodeState, draft: Draft, ladder: Sequence[Rung]) -> Plan:
    """One row for every live slot, then draft tokens, then prompts, as far as capacity goes.

    A slot still reading its prompt drafts nothing. A draft never reaches past the slot's limit:
    `lens + draft_lens < max_lens`.
    """
    capacity = max(rung.capacity for rung in ladder)
    first = state.live.astype(jnp.int32)
    waiting = jnp.where(state.live, state.lens - state.kv_lens - 1, 0)
    room = jnp.maximum(state.max_lens - state.lens - 1, 0)
    wanted = jnp.where(state.live & (waiting == 0), jnp.minimum(draft.lens, room), 0)
    draft_lens = trim(wanted, capacity - first.sum(), draft.tokens.shape[1])
    prefill = _share_in_order(waiting, capacity - first.sum() - draft_lens.sum())
    q_lens = first + draft_lens + prefill
    complete = state.live & (prefill == waiting)
    return Plan(q_lens, draft_lens, complete, first_fit(ladder, q_lens))


def trim(draft_lens: jax.Array, budget: jax.Array, draft_length: int) -> jax.Array:
    """Cuts drafts int32[B] from their ends until at most `budget` tokens are left.

    Later tokens are the less likely ones, so first tokens of all slots come before second ones.
    """
    position = jnp.arange(draft_length, dtype=jnp.int32)[:, None]
    drafted = position < draft_lens[None]
    rank = jnp.cumsum(drafted.ravel(), dtype=jnp.int32).reshape(drafted.shape)
    return jnp.sum(drafted & (rank <= budget), axis=0, dtype=jnp.int32)


def _share_in_order(wanted: jax.Array, budget: jax.Array) -> jax.Array:
    """Gives each slot what it wants, int32[B], first slot first, until `budget` is used up."""
    before = jnp.cumsum(wanted, dtype=jnp.int32) - wanted
    return jnp.clip(budget - before, 0, wanted)
