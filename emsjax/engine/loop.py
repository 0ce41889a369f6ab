"""The one decode loop: draft, plan, pack, forward, verify, commit, on the device.

Plain decoding is this loop with a drafter that drafts nothing; the padded methods are policies.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import learn, predict
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Drafter, WorthDrafting
from emsjax.engine.holes import behind_holes
from emsjax.engine.ladder import Rung
from emsjax.engine.load import load_of
from emsjax.engine.model import Model
from emsjax.engine.packing import NO_PARENT, Guesses, PackedBatch, pack
from emsjax.engine.policy import EMS, Policy
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan, make_plan
from emsjax.engine.verify import commit, count_accepted
from emsjax.engine.worth import Economics, StepCosts, worth_drafting
from emsjax.sampling.choose import Chosen, choose
from emsjax.sampling.logprobs import empty_logprobs
from emsjax.sampling.rows import NO_TOKEN, Rows


class Setup(NamedTuple):
    """What a loop is made of; static, but for the model's weights.

    Attributes:
      model: the target.
      drafter: guesses tokens.
      ladder: shapes of a step, cheapest first.
      policy: what to pad.
      choose: from the target's logits to tokens.
    """

    model: Model
    drafter: Drafter
    ladder: Sequence[Rung]
    policy: Policy = EMS
    choose: Callable[[jax.Array, Rows, DecodeState], Chosen] = choose


class Forward(NamedTuple):
    """What the target's forward pass changes and finds.

    Attributes:
      cache: K/V [L, B, S, R, 128].
      chosen: [B, k+1], the target's choice after the known tokens and after each draft token.
      hidden: [B, k+1, D], what it was chosen from; None where the drafter does not read it.
    """

    cache: jax.Array
    chosen: Chosen
    hidden: jax.Array | None


class Planned(NamedTuple):
    """The plan of a step, and what it went by.

    Attributes:
      plan: see `Plan`.
      likely: float32[B, k], how likely each draft token is to be accepted.
    """

    plan: Plan
    likely: jax.Array


def run(
    setup: Setup,
    weights: Any,
    costs: StepCosts | None,
    state: DecodeState,
    max_steps: jax.Array,
    others_wait: jax.Array,
) -> DecodeState:
    """Steps until there is something for the host to do.

    That is: no slot is live; a slot has its first token (its time is worth knowing); a slot
    finished and others wait for it; or `max_steps` steps were made.

    Args:
      setup: what the loop is made of.
      weights: the drafter's.
      costs: what a step costs on each rung; None to verify all that fits.
      state: of all slots.
      max_steps: int32[].
      others_wait: bool[], whether requests wait for a slot.
    """

    def goes_on(carry: tuple[DecodeState, jax.Array, jax.Array]) -> jax.Array:
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
    return jax.lax.while_loop(goes_on, body, start)[0]


def step(
    setup: Setup,
    weights: Any,
    costs: StepCosts | None,
    state: DecodeState,
    others_wait: jax.Array,
) -> DecodeState:
    """One target step for all slots."""
    economics = economics_of(costs, state, others_wait)
    with jax.named_scope("draft"):
        state, draft = draft_tokens(setup, weights, state, economics)
    with jax.named_scope("plan"):
        planned = plan_rows(setup, state, draft, economics)
    with jax.named_scope("target"):
        result = run_target(setup, state, draft, planned.plan)
    with jax.named_scope("verify"):
        accepted = count_accepted(draft, planned.plan.draft_lens, result.chosen.tokens)
        state = take_note(state, draft, planned, result, accepted)
    with jax.named_scope("commit"):
        return commit(state, draft, planned.plan, accepted, result.chosen)


def economics_of(
    costs: StepCosts | None, state: DecodeState, others_wait: jax.Array | bool
) -> Economics | None:
    """What the plan and the drafter weigh in this step; None if costs are not known."""
    return None if costs is None else Economics(costs, load_of(state, others_wait))


def draft_tokens(
    setup: Setup, weights: Any, state: DecodeState, economics: Economics | None = None
) -> tuple[DecodeState, Draft]:
    """Draft tokens for every slot, and the state with the drafter's own updated."""
    worth = worth_in(setup.ladder, state, economics)
    draft, drafter_state = setup.drafter.propose(state, weights, worth)
    # The padded methods run rows past a draft's end; token 0 keeps them inside the vocabulary.
    place = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    tokens = jnp.where(place < draft.lens[:, None], draft.tokens, 0)
    return state.replace(drafter=drafter_state), draft._replace(tokens=tokens)


def plan_rows(
    setup: Setup, state: DecodeState, draft: Draft, economics: Economics | None = None
) -> Planned:
    """How many draft tokens are verified, and on which rung."""
    likely = predict(draft, state.experience)
    plan = make_plan(state, draft, likely, setup.ladder, economics, setup.policy)
    return Planned(plan, likely)


def take_note(
    state: DecodeState, draft: Draft, planned: Planned, result: Forward, accepted: jax.Array
) -> DecodeState:
    """The state with what the target's pass changed and taught."""
    plan = planned.plan
    return state.replace(
        cache=result.cache,
        experience=learn(state.experience, draft, planned.likely, plan.draft_lens, accepted),
        hidden=_behind_newest(result.hidden, accepted, plan, state),
    )


def worth_in(
    ladder: Sequence[Rung], state: DecodeState, economics: Economics | None = None
) -> WorthDrafting:
    """How many tokens a slot are worth drafting; all of them if costs are not known."""
    if economics is None:
        return lambda survival, found=None: jnp.full((), survival.shape[1], jnp.int32)
    values = economics.load.values[:, None]
    # A slot emits nothing past its limit, so draft tokens there are worth nothing.
    room = (state.max_lens - state.lens - 1)[:, None]

    def of_value(survival: jax.Array) -> jax.Array:
        places = jnp.arange(survival.shape[1], dtype=jnp.int32)[None]
        return jnp.where(places < room, survival * values, 0.0)

    def worth(survival: jax.Array, found: jax.Array | None = None) -> jax.Array:
        found = jnp.zeros_like(survival) if found is None else found
        return worth_drafting(of_value(survival), of_value(found), ladder, economics)

    return worth


def _behind_newest(
    hidden: jax.Array | None, accepted: jax.Array, plan: Plan, state: DecodeState
) -> jax.Array | None:
    """The hidden state [B, D] from which each slot's newest token was chosen."""
    if hidden is None or state.hidden is None:
        return None
    newest = jnp.take_along_axis(hidden, accepted[:, None, None], axis=1)[:, 0]
    return jnp.where(plan.complete[:, None], newest, state.hidden)


def run_target(setup: Setup, state: DecodeState, draft: Draft, plan: Plan) -> Forward:
    """Runs the planned rows on the planned rung.

    Each rung is a while loop of zero or one trip: a `lax.switch` around the scan over layers
    would copy the whole cache (measured, for TPU and CPU).
    """
    shape = (state.lens.shape[0], setup.drafter.draft_length + 1)
    hidden = state.hidden
    if hidden is not None:
        hidden = jnp.zeros((*shape, hidden.shape[1]), hidden.dtype)
    carry = (plan.rung, Forward(state.cache, _nothing_chosen(shape, state), hidden))
    for index, rung in enumerate(setup.ladder):

        def chosen(carry: tuple[jax.Array, Forward], index: int = index) -> jax.Array:
            return carry[0] == index

        def forward(
            carry: tuple[jax.Array, Forward], rung: Rung = rung
        ) -> tuple[jax.Array, Forward]:
            ran = _run_rung(setup, rung, state, draft, plan, carry[1])
            return jnp.full_like(carry[0], -1), ran

        carry = jax.lax.while_loop(chosen, forward, carry)
    return carry[1]


def _run_rung(
    setup: Setup, rung: Rung, state: DecodeState, draft: Draft, plan: Plan, previous: Forward
) -> Forward:
    """Packs, runs the model and chooses a token after each row that can emit.

    With one rung (`exact`) the logits of all rows are computed, needed or not: how many are needed
    differs with B and k, and a product over fewer rows may round differently.
    """
    guesses = Guesses(draft.tokens, state.lens)
    batch = pack(state.tokens, state.kv_lens, plan.q_lens, rung.capacity, guesses)
    placed = batch if state.holes is None else behind_holes(batch, state.holes)
    hidden, cache = setup.model(placed, previous.cache, max_q_len=rung.max_q_len)
    prefixes = _prefixes(batch, state, draft)
    last_known = batch.cu_q_lens[1:] - 1 - plan.pad_lens - plan.draft_lens
    steps = jnp.arange(previous.chosen.tokens.shape[1], dtype=jnp.int32)[None]
    rows = jnp.clip(last_known[:, None] + steps, 0, rung.capacity - 1)
    kept = None if previous.hidden is None else hidden[rows]
    if len(setup.ladder) == 1 or rung.capacity <= rows.size:
        chosen = setup.choose(setup.model.logits(hidden), prefixes, state)
        return Forward(cache, jax.tree.map(lambda x: x[rows], chosen), kept)
    needed = rows.ravel()
    prefixes = jax.tree.map(lambda x: x[needed], prefixes)
    chosen = setup.choose(setup.model.logits(hidden[needed]), prefixes, state)
    by_slot = jax.tree.map(lambda x: x.reshape(*rows.shape, *x.shape[1:]), chosen)
    return Forward(cache, by_slot, kept)


def _prefixes(batch: PackedBatch, state: DecodeState, draft: Draft) -> Rows:
    """What each row of the batch follows; that of an unused row means nothing."""
    slots = jnp.minimum(batch.slot_ids, state.lens.shape[0] - 1)
    known = state.tokens[slots, jnp.maximum(batch.positions - 1, 0)]
    depth = batch.positions - state.lens[slots] + 1
    place = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return Rows(
        slots=slots,
        positions=batch.positions,
        tokens=batch.tokens,
        before=jnp.where(batch.parents == NO_PARENT, known, batch.tokens[batch.parents]),
        path=jnp.where(place < depth[:, None], draft.tokens[slots], NO_TOKEN),
    )


def _nothing_chosen(shape: tuple[int, ...], state: DecodeState) -> Chosen:
    logprobs = None if state.sampling is None else empty_logprobs(shape)
    return Chosen(jnp.zeros(shape, jnp.int32), logprobs)
