"""Planning a step: how many rows each slot gets, and on which rung of the ladder it runs.

The plan hands out the rows of the packed buffer in this order:

1. One row for each live slot, for its oldest token without K/V. In a slot that decodes, this is its
   newest token, after which the target chooses the next one. So every live slot makes progress in
   every step.
2. Draft tokens. Those of all slots compete for the rows, and the likeliest win.
3. The rest of the prompts that are being read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import survival_of
from emsjax.engine.draft import Draft
from emsjax.engine.ladder import Rung, for_drafts
from emsjax.engine.policy import EMS, Policy
from emsjax.engine.state import DecodeState
from emsjax.engine.tree import Tree
from emsjax.engine.worth import Economics, Worth, most_worth

# While a prompt is read, a draft token takes a row from it only if it is at least this likely to be
# accepted.
MIN_SURVIVAL_WHILE_READING = 0.5


class Plan(NamedTuple):
    """The rows that a step computes.

    Attributes:
      q_lens: int32[B], rows of each slot: known tokens without K/V, then draft tokens, then
        padding.
      draft_lens: int32[B], how many of these rows are draft tokens.
      pad_lens: int32[B], how many of these rows are padding.
      complete: bool[B], whether all known tokens of the slot have K/V after this step, so that it
        emits.
      rung: int32[], index into the ladder.
    """

    q_lens: jax.Array
    draft_lens: jax.Array
    pad_lens: jax.Array
    complete: jax.Array
    rung: jax.Array


class Planned(NamedTuple):
    """The plan of a step, and what it is based on.

    Attributes:
      plan: see `Plan`.
      draft: the guesses, in the order in which the plan takes them.
      likely: float32[B, k], the probability that each draft token is accepted if those before it
        are.
      tree: of the guesses; None if they are chains.
    """

    plan: Plan
    draft: Draft
    likely: jax.Array
    tree: Tree | None = None


def make_plan(
    state: DecodeState,
    draft: Draft,
    likely: jax.Array,
    ladder: Sequence[Rung],
    economics: Economics | None = None,
    policy: Policy = EMS,
) -> Plan:
    """Gives every live slot one row, then rows to draft tokens, then to prompts, up to capacity.

    A slot that still reads its prompt drafts nothing. A draft never has a row past its slot's
    limit: `lens + draft_lens < max_lens`. With `economics`, draft tokens that are not worth their
    rows are left out. The exception is a step that also reads a prompt. Its cost is mostly the
    prompt's rows, so it takes every draft token that fits and is likely enough.

    Args:
      state: the state of all slots.
      draft: the guesses, a tree's sorted by survival.
      likely: float32[B, k], the probability that each is accepted if those before it are.
      ladder: the shapes that a step may take, cheapest first.
      economics: the cost of a step and the value of its tokens; None to verify all that fits.
      policy: what to pad.

    Raises:
      ValueError: `economics` is given with a policy that pads inputs. Costs do not include padding.
    """
    if economics is not None and policy.pad_inputs:
        raise ValueError("a policy that pads inputs cannot be planned by costs; pass no economics")
    first, unread = _first(state), _unread(state)
    decoding, reading = state.live & (unread == 0), (unread > 0).any()
    free = _capacity(ladder) - first.sum()
    # The bonus token needs room too, so a draft must stay one token short of the limit.
    room = jnp.maximum(state.max_lens - state.lens - 1, 0)
    wanted = jnp.where(decoding, jnp.minimum(draft.lens, room), 0)
    if policy.pad_inputs:
        # Every decoding slot is padded to the longest draft, and all of these rows must fit.
        wanted = jnp.minimum(wanted, free // jnp.maximum(decoding.sum(dtype=jnp.int32), 1))
    survival = survival_of(likely, wanted, draft.parents)
    budget, worth = free, None
    if economics is not None:
        # Likely enough is judged by probability alone, before the slots' values are applied.
        too_unlikely = reading & (survival < MIN_SURVIVAL_WHILE_READING)
        survival *= economics.load.values[:, None]
        worth = most_worth(survival, ladder, economics)
        budget = jnp.where(reading, budget, worth.drafts)
        survival = jnp.where(too_unlikely, 0.0, survival)
    draft_lens = trim(survival, budget)
    pad_lens = jnp.zeros_like(first)
    if policy.pad_inputs:
        pad_lens = _padding(state, draft_lens, decoding)
    return _with_prompts(state, ladder, likely.shape[1], draft_lens, pad_lens, worth)


def plan_without_drafts(
    state: DecodeState, ladder: Sequence[Rung], draft_length: int, economics: Economics
) -> Plan:
    """Returns what `make_plan` does if nothing is drafted and nothing is padded."""
    none = jnp.zeros_like(state.lens)
    worth = most_worth(jnp.zeros((1, 1), jnp.float32), ladder, economics)
    return _with_prompts(state, ladder, draft_length, none, none, worth)


def _with_prompts(
    state: DecodeState,
    ladder: Sequence[Rung],
    draft_length: int,
    draft_lens: jax.Array,
    pad_lens: jax.Array,
    worth: Worth | None,
) -> Plan:
    """Gives prompts the rows that tokens, drafts and padding leave, and picks the rung.

    Args:
      state: the state of all slots.
      ladder: the shapes that a step may take, cheapest first.
      draft_length: k.
      draft_lens: int32[B].
      pad_lens: int32[B].
      worth: the rung for a step that reads no prompt; None for the first that fits.
    """
    unread = _unread(state)
    emitting = _first(state) + draft_lens + pad_lens
    prefill = _share_in_order(unread, _capacity(ladder) - emitting.sum())
    q_lens = emitting + prefill
    rung = first_fit(ladder, q_lens, draft_length)
    if worth is not None:
        rung = jnp.where((unread > 0).any(), rung, worth.rung)
    return Plan(q_lens, draft_lens, pad_lens, state.live & (prefill == unread), rung)


def _first(state: DecodeState) -> jax.Array:
    """Returns the row of each live slot that comes before all others, int32[B] of 0 and 1."""
    return state.live.astype(jnp.int32)


def _unread(state: DecodeState) -> jax.Array:
    """Returns the known tokens without K/V, int32[B], but for the one whose row is in `_first`."""
    return jnp.where(state.live, state.lens - state.kv_lens - 1, 0)


def _capacity(ladder: Sequence[Rung]) -> int:
    return max(rung.capacity for rung in ladder)


def first_fit(ladder: Sequence[Rung], q_lens: jax.Array, draft_length: int) -> jax.Array:
    """Returns the index int32[] of the cheapest rung that holds `q_lens` int32[B] rows.

    A rung for prompts is used only if no other one fits.
    """
    capacities = jnp.asarray([rung.capacity for rung in ladder], jnp.int32)
    longest = jnp.asarray([rung.max_q_len for rung in ladder], jnp.int32)
    fits = (capacities >= q_lens.sum()) & (longest >= q_lens.max())
    narrow = fits & jnp.asarray(for_drafts(ladder, draft_length))
    return jnp.argmax(jnp.where(narrow.any(), narrow, fits)).astype(jnp.int32)


def _padding(state: DecodeState, draft_lens: jax.Array, decoding: jax.Array) -> jax.Array:
    """Returns the rows that pad each decoding slot to the longest draft, if its cache has room."""
    used = state.lens + draft_lens + (0 if state.holes is None else state.holes.counts)
    room = jnp.maximum(state.tokens.shape[1] - used, 0)
    return jnp.where(decoding, jnp.minimum(draft_lens.max() - draft_lens, room), 0)


def trim(survival: jax.Array, budget: jax.Array) -> jax.Array:
    """Returns how many tokens of each draft are among the `budget` best of all slots, int32[B].

    Survival falls along each draft, so a token is kept only if those before it are, and the kept
    tokens of a slot are a prefix of its draft.

    Args:
      survival: float32[B, k], falling along each draft; 0 for entries that are no draft token.
      budget: int32[].
    """
    # Transposed, so that in a tie the first draft tokens of all slots come before the second ones.
    by_place = survival.T
    order = jnp.argsort(-by_place.ravel(), stable=True)
    count = order.shape[0]
    places = jnp.arange(count, dtype=jnp.int32)
    rank = jnp.zeros(count, jnp.int32).at[order].set(places).reshape(by_place.shape)
    return jnp.sum((by_place > 0) & (rank < budget), axis=0, dtype=jnp.int32)


def _share_in_order(wanted: jax.Array, budget: jax.Array) -> jax.Array:
    """Gives each slot the rows it wants, int32[B], in slot order until `budget` is used up."""
    before = jnp.cumsum(wanted, dtype=jnp.int32) - wanted
    return jnp.clip(budget - before, 0, wanted)
