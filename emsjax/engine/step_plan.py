"""Planning a step: how many rows each slot gets, and on which rung of the ladder."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import survival_of
from emsjax.engine.draft import Draft
from emsjax.engine.ladder import Rung, first_fit
from emsjax.engine.policy import EMS, Policy
from emsjax.engine.state import DecodeState
from emsjax.engine.worth import Economics, most_worth

# How likely a draft token has to be for its row to be worth more than a row of a waiting prompt.
WORTH_A_PROMPTS_ROW = 0.5


class Plan(NamedTuple):
    """What the step computes.

    Attributes:
      q_lens: int32[B], rows of each slot: known tokens without K/V, then draft tokens.
      draft_lens: int32[B], how many of them are draft tokens.
      pad_lens: int32[B], how many behind those are padding.
      complete: bool[B], the slot's known tokens all have K/V after this step, so that it emits.
      rung: int32[], index into the ladder.
    """

    q_lens: jax.Array
    draft_lens: jax.Array
    pad_lens: jax.Array
    complete: jax.Array
    rung: jax.Array


def make_plan(
    state: DecodeState,
    draft: Draft,
    likely: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics | None = None,
    policy: Policy = EMS,
) -> Plan:
    """One row for every live slot, then draft tokens, then prompts, as far as capacity goes.

    A slot still reading its prompt drafts nothing. A draft never reaches past the slot's limit:
    `lens + draft_lens < max_lens`. With `economics`, draft tokens that are not worth their rows are
    left out; beside a prompt, whose rows are many, all are taken that fit and are likely enough.

    Args:
      state: of all slots.
      draft: the guesses.
      likely: float32[B, k], how likely each is to be accepted if those before it are.
      ladder: shapes of a step, cheapest first.
      economics: what a step costs and its tokens are worth; None to verify all that fits.
      policy: what to pad.

    Raises:
      ValueError: `economics` with a policy that pads inputs, whose padding they know nothing of.
    """
    if economics is not None and policy.pad_inputs:
        raise ValueError("steps whose inputs are padded are not planned by their costs")
    capacity = max(rung.capacity for rung in ladder)
    first = state.live.astype(jnp.int32)
    waiting = jnp.where(state.live, state.lens - state.kv_lens - 1, 0)
    room = jnp.maximum(state.max_lens - state.lens - 1, 0)
    decoding = state.live & (waiting == 0)
    wanted = jnp.where(decoding, jnp.minimum(draft.lens, room), 0)
    if policy.pad_inputs:
        # The longest draft's rows must fit for every one that is padded to it.
        widest = (capacity - first.sum()) // jnp.maximum(decoding.sum(dtype=jnp.int32), 1)
        wanted = jnp.minimum(wanted, widest)
    survival = survival_of(likely, wanted)
    reading, budget = (waiting > 0).any(), capacity - first.sum()
    worth = None
    if economics is not None:
        too_unlikely = reading & (survival < WORTH_A_PROMPTS_ROW)
        survival *= economics.load.values[:, None]
        worth = most_worth(survival, ladder, economics)
        budget = jnp.where(reading, budget, worth.drafts)
        survival = jnp.where(too_unlikely, 0.0, survival)
    draft_lens = trim(survival, budget)
    pad_lens = jnp.zeros_like(first)
    if policy.pad_inputs:
        pad_lens = _padding(state, draft_lens, decoding)
    emitting = first + draft_lens + pad_lens
    prefill = _share_in_order(waiting, capacity - emitting.sum())
    q_lens = emitting + prefill
    complete = state.live & (prefill == waiting)
    rung = first_fit(ladder, q_lens, likely.shape[1])
    if worth is not None:
        rung = jnp.where(reading, rung, worth.rung)
    return Plan(q_lens, draft_lens, pad_lens, complete, rung)


def _padding(state: DecodeState, draft_lens: jax.Array, decoding: jax.Array) -> jax.Array:
    """Rows that make each decoding slot's as many as the longest draft's, as far as it has room."""
    used = state.lens + draft_lens + (0 if state.holes is None else state.holes.counts)
    room = jnp.maximum(state.tokens.shape[1] - used, 0)
    return jnp.where(decoding, jnp.minimum(draft_lens.max() - draft_lens, room), 0)


def trim(survival: jax.Array, budget: jax.Array) -> jax.Array:
    """How many tokens of each draft are among the `budget` likeliest of all, int32[B].

    Args:
      survival: float32[B, k], falling along each draft; 0 for what is no draft token.
      budget: int32[].
    """
    # Of equally likely ones, first tokens of all slots come before second ones.
    by_place = survival.T
    order = jnp.argsort(-by_place.ravel(), stable=True)
    count = order.shape[0]
    places = jnp.arange(count, dtype=jnp.int32)
    rank = jnp.zeros(count, jnp.int32).at[order].set(places).reshape(by_place.shape)
    return jnp.sum((by_place > 0) & (rank < budget), axis=0, dtype=jnp.int32)


def _share_in_order(wanted: jax.Array, budget: jax.Array) -> jax.Array:
    """Gives each slot what it wants, int32[B], first slot first, until `budget` is used up."""
    before = jnp.cumsum(wanted, dtype=jnp.int32) - wanted
    return jnp.clip(budget - before, 0, wanted)
