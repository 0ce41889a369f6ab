"""The decode loop, which every method shares: draft, plan, pack, run the target, verify, commit.

Speculative decoding guesses a few tokens ahead, checks all of them in one forward pass of the
target model, and keeps those that the target would have chosen itself. In a batch, slots draft and
accept different numbers of tokens. EMS-SD (arXiv 2405.07542) pads neither the inputs nor the caches
to a common length. Each `step` does this for all slots at once:

1. Draft: the drafter guesses up to k tokens after each slot's known text.
2. Plan: the planner decides how many of those draft tokens each slot may verify, and picks the
   rung, which is the size of the packed buffer.
3. Pack: the rows of all slots lie one after another in one buffer, without padding between them.
4. Target: one forward pass writes each row's K/V at its own position in its slot's cache. Then the
   target chooses a token after each row that can emit one.
5. Verify: a draft token is accepted if it is the token that the target chose in its place, and all
   draft tokens before it were accepted.
6. Commit: the accepted tokens and the bonus token, which the target chose after them, become known
   text. K/V of rejected tokens stay in the cache past `kv_lens`, where nothing reads them and later
   steps overwrite them.

A slot's newest token is known but has no K/V yet, so its row comes first in the next step. A slot
still reading its prompt has several such tokens. Prefill, which reads prompts, is therefore the
same step with more rows. Plain decoding is this loop with a drafter that drafts nothing, and the
padded methods are policies, see `policy.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import learn, predict, survival_of
from emsjax.engine.choices import (
    choose_in_chunks,
    emitting_rows,
    following_tokens,
    nothing_chosen,
    prefixes_of,
    take,
)
from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.drafter import Drafter, Observation, WorthDrafting, observer, passes_of
from emsjax.engine.grammar_drafts import in_grammar
from emsjax.engine.holes import after_holes
from emsjax.engine.ladder import Rung
from emsjax.engine.load import load_of
from emsjax.engine.model import Model
from emsjax.engine.packing import Guesses, PackedBatch, pack
from emsjax.engine.policy import EMS, Policy
from emsjax.engine.rest import rested, unless_resting
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.engine.step_plan import Planned, make_plan, plan_without_drafts
from emsjax.engine.tree import sort_by, tree_of
from emsjax.engine.verify import Verdict, along, commit, verify
from emsjax.engine.worth import Economics, worth_drafting
from emsjax.sampling.choose import Chosen, choose
from emsjax.sampling.rows import Rows


class Setup(NamedTuple):
    """The parts of a loop. All are static except the model's weights.

    Attributes:
      model: the target.
      drafter: guesses tokens.
      ladder: the shapes that a step may take, cheapest first.
      policy: what to pad.
      choose: turns the target's logits into tokens.
    """

    model: Model
    drafter: Drafter
    ladder: Sequence[Rung]
    policy: Policy = EMS
    choose: Callable[[jax.Array, Rows, DecodeState], Chosen] = choose


class Forward(NamedTuple):
    """The result of the target's forward pass.

    Attributes:
      cache: K/V [L, B, S, R, 128], with this step's rows written.
      chosen: [B, k+1], the target's choices after the known tokens and after each draft token.
      hidden: [B, k+1, D], the hidden states that led to the choices, of the layers that the drafter
        reads, or what it made of them; None if it reads none.
      drafter: the drafter's state if it has observed the rows; None if it does not.
    """

    cache: Any
    chosen: Chosen
    hidden: jax.Array | None
    drafter: Any = None


def run(
    setup: Setup,
    weights: Any,
    costs: StepCosts | None,
    state: DecodeState,
    max_steps: jax.Array,
    others_wait: jax.Array,
) -> DecodeState:
    """Steps until the host has something to do.

    The loop returns when no slot is live, when a slot has its first token (the host records the
    time), when a slot finishes while other requests wait for it, or after `max_steps` steps.

    Args:
      setup: the parts of the loop.
      weights: the drafter's weights.
      costs: the cost of a step on each rung; None to verify every draft token that fits.
      state: the state of all slots.
      max_steps: int32[].
      others_wait: bool[], whether requests wait for a slot.
    """

    def keep_going(carry: tuple[DecodeState, jax.Array, jax.Array]) -> jax.Array:
        state, steps, called = carry
        return state.live.any() & (steps < max_steps) & ~called

    def body(
        carry: tuple[DecodeState, jax.Array, jax.Array],
    ) -> tuple[DecodeState, jax.Array, jax.Array]:
        before, steps, _ = carry
        after = step(setup, weights, costs, before, others_wait)
        freed = (before.live & ~after.live).any() & others_wait
        started = (
            before.live & (after.stats.target_steps == 1) & (before.stats.target_steps == 0)
        ).any()
        return after, steps + 1, freed | started

    start = (state, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool))
    return jax.lax.while_loop(keep_going, body, start)[0]


def step(
    setup: Setup,
    weights: Any,
    costs: StepCosts | None,
    state: DecodeState,
    others_wait: jax.Array,
) -> DecodeState:
    """Runs one target step for all slots."""
    economics = economics_of(costs, state, others_wait)
    with jax.named_scope("draft"):
        state, draft = draft_tokens(setup, weights, state, economics)
    with jax.named_scope("plan"):
        planned = plan_rows(setup, state, draft, economics)
    with jax.named_scope("target"):
        result = run_target(setup, weights, state, planned)
    with jax.named_scope("verify"):
        verdict = verify(
            planned.draft.tokens, planned.plan.draft_lens, result.chosen.tokens, planned.tree
        )
        caches = keep_path(setup, (result.cache, result.drafter), state.kv_lens, verdict)
        result = result._replace(cache=caches[0], drafter=caches[1])
        state = take_note(state, planned, result, verdict)
    with jax.named_scope("commit"):
        return commit(state, planned, verdict, result.chosen)


def economics_of(
    costs: StepCosts | None, state: DecodeState, others_wait: jax.Array | bool
) -> Economics | None:
    """Returns what the planner and the drafter weigh in this step; None if costs are unknown."""
    return None if costs is None else Economics(costs, load_of(state, others_wait))


def draft_tokens(
    setup: Setup, weights: Any, state: DecodeState, economics: Economics | None = None
) -> tuple[DecodeState, Draft]:
    """Drafts for every slot; returns the state with the drafter's part updated, and the draft."""
    worth = _length_worth_drafting(setup, state, economics)
    propose = partial(setup.drafter.propose, worth=worth)
    if economics is None or setup.drafter.draft_length == 0:
        draft, drafter_state = propose(state, weights)
    else:
        draft, drafter_state = unless_resting(propose, state, weights)
    # The padded methods run rows past a draft's end. Token 0 keeps those rows inside the
    # vocabulary.
    place = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    there = place < draft.lens[:, None]
    cache = state.cache if draft.cache is None else draft.cache
    state = state.replace(drafter=drafter_state, cache=cache)
    draft = in_grammar(draft._replace(tokens=jnp.where(there, draft.tokens, 0), cache=None), state)
    there = place < draft.lens[:, None]
    if draft.parents is not None:
        if len(setup.ladder) == 1 or setup.policy != EMS:
            raise ValueError("the drafter makes trees: `exact` and the padded methods take chains")
        draft = draft._replace(parents=jnp.where(there, draft.parents, ROOT))
    return state, draft


def _length_worth_drafting(
    setup: Setup, state: DecodeState, economics: Economics | None
) -> WorthDrafting:
    """Returns the function that tells a drafter how many tokens to draft for each slot.

    A drafter whose tokens take time calls it before drafting. Without costs it answers k, so that
    everything is drafted.
    """
    passes = passes_of(setup.drafter, state.lens.shape[0])
    if economics is None:
        return lambda survival, found=None, compete=False: jnp.full(
            (), min(survival.shape[1], passes.depth), jnp.int32
        )
    values = economics.load.values[:, None]
    # A slot emits nothing past its limit, so draft tokens there are worth nothing.
    room = (state.max_lens - state.lens - 1)[:, None]

    def value_of(survival: jax.Array) -> jax.Array:
        places = jnp.arange(survival.shape[1], dtype=jnp.int32)[None]
        return jnp.where(places < room, survival * values, 0.0)

    def worth(
        survival: jax.Array, found: jax.Array | None = None, compete: bool = False
    ) -> jax.Array:
        found = jnp.zeros_like(survival) if found is None else found
        both = value_of(survival), value_of(found)
        return worth_drafting(*both, setup.ladder, economics, passes, compete)

    return worth


def plan_rows(
    setup: Setup, state: DecodeState, draft: Draft, economics: Economics | None = None
) -> Planned:
    """Plans how many draft tokens are verified, and on which rung."""

    def plan(draft: Draft) -> Planned:
        likely = predict(draft, state.experience)
        survival = survival_of(likely, draft.lens, draft.parents)
        draft, likely = sort_by(survival, draft, likely)
        plan = make_plan(state, draft, likely, setup.ladder, economics, setup.policy)
        return Planned(plan, draft, likely, tree_of(draft))

    def plan_nothing(draft: Draft) -> Planned:
        assert economics is not None
        plan = plan_without_drafts(state, setup.ladder, draft.tokens.shape[1], economics)
        return Planned(plan, draft, jnp.zeros(draft.tokens.shape), tree_of(_alone(draft)))

    if economics is None:
        return plan(draft)
    planned: Planned = jax.lax.cond(draft.lens.any(), plan, plan_nothing, draft)
    return planned


def _alone(draft: Draft) -> Draft:
    """Returns the draft as if all guesses followed the newest known token."""
    if draft.parents is None:
        return draft
    return draft._replace(parents=jnp.full(draft.parents.shape, ROOT, jnp.int32))


def run_target(setup: Setup, weights: Any, state: DecodeState, planned: Planned) -> Forward:
    """Runs the planned rows on the planned rung; `weights` are the drafter's.

    Every rung is compiled into the program as a while loop of zero or one trip. A `lax.switch`
    around the scan over layers would copy the whole cache (measured, for TPU and CPU).
    """
    shape = (state.lens.shape[0], setup.drafter.draft_length + 1)
    hidden = state.hidden
    if hidden is not None:
        hidden = jnp.zeros((*shape, hidden.shape[1]), hidden.dtype)
    observing = None if observer(setup.drafter) is None else state.drafter
    nothing = Forward(state.cache, nothing_chosen(shape, state), hidden, observing)
    carry = (planned.plan.rung, nothing)
    for index, rung in enumerate(setup.ladder):

        def is_planned(carry: tuple[jax.Array, Forward], index: int = index) -> jax.Array:
            return carry[0] == index

        def run_once(
            carry: tuple[jax.Array, Forward], rung: Rung = rung
        ) -> tuple[jax.Array, Forward]:
            result = _run_rung(setup, weights, rung, state, planned, carry[1])
            # No rung has the index -1, so this loop ends and no later one starts.
            return jnp.full_like(carry[0], -1), result

        carry = jax.lax.while_loop(is_planned, run_once, carry)
    return carry[1]


def _run_rung(
    setup: Setup, weights: Any, rung: Rung, state: DecodeState, planned: Planned, previous: Forward
) -> Forward:
    """Packs the rows, runs the model and chooses a token after each row that can emit one.

    With a single rung (`exact`) this computes the logits of all rows, including those that cannot
    emit. The number of rows that can emit depends on B and k, and a product over fewer rows may
    round differently.
    """
    plan = planned.plan
    guesses = Guesses(planned.draft.tokens, state.lens, planned.tree)
    batch = pack(state.tokens, state.kv_lens, plan.q_lens, rung.capacity, guesses)
    placed = batch if state.holes is None else after_holes(batch, state.holes)
    hidden, cache, read = _pass(setup, placed, previous.cache, rung.max_q_len)
    rows = emitting_rows(batch.cu_q_lens, plan, rung.capacity, previous.chosen.tokens.shape[1])
    prefixes = prefixes_of(batch, state, guesses)

    def choose_after(index: jax.Array | None) -> Chosen:
        chosen_from, before = take(hidden, index), take(prefixes, index)
        return setup.choose(setup.model.logits(chosen_from), before, state)

    if len(setup.ladder) == 1 or rung.capacity <= rows.places.size:
        chosen = take(choose_after(None), rows.places)
    else:  # a rung this wide is for prompts, whose rows mostly emit nothing
        chosen = choose_in_chunks(choose_after, rows, previous.chosen)
    drafter = previous.drafter
    if (observing := observer(setup.drafter)) is not None:
        following = following_tokens(batch, state, rows, chosen.tokens)
        seen = Observation(placed, read, following, rung.max_q_len)
        drafter, read = observing.observe(drafter, weights, seen)
    kept = None if previous.hidden is None else read[rows.places]
    return Forward(cache, chosen, kept, drafter)


def _pass(
    setup: Setup, batch: PackedBatch, cache: Any, max_q_len: int
) -> tuple[jax.Array, Any, jax.Array]:
    """Runs the model; returns final states, cache, and the states that the drafter reads."""
    if keep := setup.drafter.hidden_layers:
        done = setup.model.run(batch, cache, max_q_len=max_q_len, keep=keep)
        assert done.inner is not None
        return done.hidden, done.cache, done.inner
    hidden, cache = setup.model(batch, cache, max_q_len=max_q_len)
    return hidden, cache, hidden


def keep_path(
    setup: Setup, caches: tuple[Any, Any], kv_lens: jax.Array, verdict: Verdict
) -> tuple[Any, Any]:
    """Returns the caches with the K/V of the accepted tokens one after another.

    In a tree, other guesses may lie between them.

    Args:
      setup: the parts of the loop.
      caches: the target's K/V of all slots, with the step's rows, and the drafter's state.
      kv_lens: int32[B], the place of each slot's first row.
      verdict: see `verify`.
    """
    if verdict.path is None:
        return caches
    cache, mine = caches
    rows = jnp.arange(verdict.path.shape[1], dtype=jnp.int32)[None]
    first = kv_lens[:, None]
    moved = (rows <= verdict.accepted[:, None]) & (rows != verdict.path)
    places = first + verdict.path, first + rows, moved
    if (observing := observer(setup.drafter)) is not None:
        mine = observing.move_kv(mine, *places)
    return setup.model.move_kv(cache, *places), mine


def take_note(
    state: DecodeState, planned: Planned, result: Forward, verdict: Verdict
) -> DecodeState:
    """Returns the state with the target's cache and hidden states, and with the experience gained.

    Args:
      state: before the target's pass.
      planned: the plan and its estimates.
      result: of the target's pass.
      verdict: see `verify`.
    """
    seen = verdict.tried, verdict.right
    experience = learn(state.experience, planned.draft, planned.likely, *seen)
    return state.replace(
        cache=result.cache,
        drafter=state.drafter if result.drafter is None else result.drafter,
        experience=rested(experience, state, planned.plan),
        hidden=_newest_hidden(along(verdict.path, result.hidden), verdict.accepted),
    )


def _newest_hidden(hidden: jax.Array | None, accepted: jax.Array) -> jax.Array | None:
    """Returns the hidden state [B, D] that led to each slot's newest token.

    It means nothing for a slot that has not emitted a token yet.
    """
    if hidden is None:
        return None
    return jnp.take_along_axis(hidden, accepted[:, None, None], axis=1)[:, 0]
