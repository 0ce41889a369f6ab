"""The properties of every plan, for any state, on ladders that are in use."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.draft import Draft
from emsjax.engine.ladder import Rung, for_drafts, make_ladder
from emsjax.engine.load import KV_BLOCK, PACE_STEPS, URGENCY, load_of
from emsjax.engine.loop import economics_of
from emsjax.engine.policy import EMS, POLICIES, Policy
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts, without_prompts
from emsjax.engine.step_plan import Plan, make_plan, trim
from emsjax.engine.worth import Economics
from tests.engine.states import int32s, make_state, slots

CACHE_LEN = 600


@dataclass(frozen=True)
class Setting:
    num_slots: int
    draft_length: int
    ladder: tuple[Rung, ...]


def setting(num_slots: int, draft_length: int, **options) -> Setting:
    return Setting(num_slots, draft_length, make_ladder(num_slots, draft_length, **options))


SETTINGS = {
    "one-slot": setting(1, 7, prefill_chunk=64),
    "few": setting(4, 3, prefill_chunk=64),
    "no-drafts": setting(5, 0, prefill_chunk=32),
    "drafts-beyond-a-chunk": setting(16, 7, prefill_chunk=64),
    "exact": setting(5, 3, exact=True),
    # Fewer rows than draft tokens, so that drafts are trimmed.
    "narrow": Setting(6, 3, (Rung(8, 4), Rung(12, 12))),
    "a-row-a-slot": Setting(4, 3, (Rung(4, 4),)),
}


@functools.cache
def program(ladder: tuple[Rung, ...], policy: Policy):
    return jax.jit(functools.partial(make_plan, ladder=ladder, policy=policy))


def plan_of(chosen: Setting, fields: dict, draft_lens: list[int], policy: Policy = EMS) -> Plan:
    state = make_state(chosen.num_slots, CACHE_LEN, chosen.draft_length, **fields)
    tokens = np.zeros((chosen.num_slots, chosen.draft_length), np.int32)
    likely = np.full(tokens.shape, 0.5, np.float32)
    plan = program(chosen.ladder, policy)(state, Draft(tokens, int32s(draft_lens)), likely)
    return Plan(*map(np.asarray, plan))


def trimmed(draft_lens: list[int], budget: int) -> list[int]:
    """Keeps all first draft tokens, then all second ones, until the budget is spent."""
    kept = [0] * len(draft_lens)
    for position in range(max(draft_lens, default=0)):
        for slot, length in enumerate(draft_lens):
            if position < length and sum(kept) < budget:
                kept[slot] += 1
    return kept


def expected_plan(
    fields: dict, draft_lens: list[int], capacity: int
) -> tuple[list[int], list[int], list[bool]]:
    """Returns rows, draft lengths and completeness, computed slot by slot."""
    unread, wanted = [], []
    for slot, live in enumerate(fields["live"]):
        lens, kv_len, max_len = (int(fields[x][slot]) for x in ("lens", "kv_lens", "max_lens"))
        unread.append(lens - kv_len - 1 if live else 0)
        drafts = live and unread[-1] == 0
        wanted.append(min(draft_lens[slot], max_len - lens - 1) if drafts else 0)
    left = capacity - int(fields["live"].sum())
    drafted = trimmed(wanted, left)
    left -= sum(drafted)
    q_lens, complete = [], []
    for live, more, draft_len in zip(fields["live"].tolist(), unread, drafted, strict=True):
        prefill = min(more, left)
        left -= prefill
        q_lens.append(live + draft_len + prefill)
        complete.append(live and prefill == more)
    return q_lens, drafted, complete


def check(chosen: Setting, fields: dict, draft_lens: list[int]) -> Plan:
    plan = plan_of(chosen, fields, draft_lens)
    check_promises(chosen, fields, draft_lens, plan)
    total, longest = plan.q_lens.sum(), plan.q_lens.max()
    narrow = for_drafts(chosen.ladder, chosen.draft_length)
    assert not any(
        total <= cheaper.capacity and longest <= cheaper.max_q_len
        for number, cheaper in enumerate(chosen.ladder[: plan.rung])
        if narrow[number] or not narrow[plan.rung]
    )
    capacity = max(rung.capacity for rung in chosen.ladder)
    q_lens, drafted, complete = expected_plan(fields, draft_lens, capacity)
    assert plan.draft_lens.tolist() == drafted
    assert plan.q_lens.tolist() == q_lens
    assert plan.complete.tolist() == complete
    return plan


def check_promises(chosen: Setting, fields: dict, draft_lens, plan: Plan) -> None:
    """Checks what must hold for any plan, however it shares out the rows."""
    live, rung = fields["live"], chosen.ladder[plan.rung]
    assert plan.q_lens.sum() <= rung.capacity
    assert plan.q_lens.max() <= rung.max_q_len
    assert (plan.q_lens[live] >= 1).all(), "every live slot makes progress"
    assert not plan.q_lens[~live].any(), "finished slots cost nothing"
    assert not plan.complete[~live].any()
    assert (plan.draft_lens <= draft_lens).all()
    drafting = plan.draft_lens > 0
    assert (fields["lens"] + plan.draft_lens < fields["max_lens"])[drafting].all()
    assert plan.complete[drafting].all()
    known = fields["lens"] - fields["kv_lens"]
    assert (plan.q_lens - plan.draft_lens <= known)[live].all()
    assert ((plan.q_lens - plan.draft_lens == known) == plan.complete)[live].all()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plan_keeps_its_promises_for_any_state(name):
    chosen = SETTINGS[name]
    draft = st.integers(0, chosen.draft_length)

    @settings(max_examples=60)
    @given(
        slots(chosen.num_slots, CACHE_LEN),
        st.lists(draft, min_size=chosen.num_slots, max_size=chosen.num_slots),
    )
    def any_state(fields: dict, draft_lens: list[int]) -> None:
        check(chosen, fields, draft_lens)

    any_state()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plan_by_costs_keeps_its_promises_too(name):
    """The promises hold whatever the steps cost and however likely the drafts are."""
    chosen, seconds = SETTINGS[name], st.floats(0.125, 64, width=32)
    shape = chosen.num_slots, chosen.draft_length
    rungs = st.lists(seconds, min_size=len(chosen.ladder), max_size=len(chosen.ladder))
    plan_by_costs = jax.jit(functools.partial(make_plan, ladder=chosen.ladder))

    @settings(max_examples=60)
    @given(slots(chosen.num_slots, CACHE_LEN), rungs, st.booleans(), st.integers(0, 2**32 - 1))
    def any_state(fields: dict, rungs: list[float], others_wait: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        state = make_state(chosen.num_slots, CACHE_LEN, chosen.draft_length, **fields)
        draft_lens = rng.integers(0, chosen.draft_length + 1, chosen.num_slots)
        draft = Draft(np.zeros(shape, np.int32), int32s(draft_lens))
        costs = StepCosts(
            np.asarray(rungs, np.float32), np.zeros(len(rungs), np.float32), np.float32(0)
        )
        costs = without_prompts(costs, chosen.ladder, chosen.draft_length)
        likely = rng.uniform(size=shape).astype(np.float32)
        economics = Economics(costs, load_of(state, others_wait))
        plan = plan_by_costs(state, draft, likely, economics=economics)
        check_promises(chosen, fields, draft_lens, Plan(*map(np.asarray, plan)))

    any_state()


def test_padded_steps_are_not_planned_by_costs():
    chosen = SETTINGS["few"]
    costs = StepCosts(np.ones(len(chosen.ladder), np.float32), *2 * [np.float32(0)])
    state = make_state(4, CACHE_LEN, 3, **four_slots())
    draft = Draft(np.zeros((4, 3), np.int32), int32s([0] * 4))
    likely = np.zeros((4, 3), np.float32)
    economics = Economics(costs, load_of(state, others_wait=False))
    with pytest.raises(ValueError, match="pads inputs cannot be planned by costs"):
        make_plan(state, draft, likely, chosen.ladder, economics, POLICIES["vanilla"])


@pytest.mark.parametrize("name", SETTINGS)
def test_long_prompts_alongside_full_drafts(name):
    """Half of the slots read a long prompt while the others draft all they can."""
    chosen = SETTINGS[name]
    odd = np.arange(chosen.num_slots) % 2 == 1
    lens = np.full(chosen.num_slots, 500, np.int32)
    fields = {
        "lens": lens,
        "kv_lens": np.where(odd, lens - 1, 0).astype(np.int32),
        "max_lens": np.full(chosen.num_slots, CACHE_LEN, np.int32),
        "live": np.full(chosen.num_slots, True),
    }
    draft_lens = [chosen.draft_length] * chosen.num_slots
    steps = 0
    while not (plan := check(chosen, fields, draft_lens)).complete.all():
        fields["kv_lens"] = np.where(
            plan.complete, fields["kv_lens"], fields["kv_lens"] + plan.q_lens
        ).astype(np.int32)
        steps += 1
        assert steps <= 500, "every step reads at least a token of each prompt"


@pytest.mark.parametrize("method", POLICIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_padding_never_exceeds_the_capacity(name, method):
    """Every slot's known tokens have their rows, even if all slots are padded to a long draft."""
    chosen = SETTINGS[name]
    lens, drafts = np.full(chosen.num_slots, 500, np.int32), st.integers(0, chosen.draft_length)

    @settings(max_examples=30)
    @given(st.lists(st.booleans() | drafts, min_size=chosen.num_slots, max_size=chosen.num_slots))
    def any_state(asked: list[int]) -> None:
        # True stands for a slot that still reads its prompt, and False for one that drafts nothing.
        reading = np.asarray([type(each) is bool and each for each in asked])
        fields = {
            "lens": lens,
            "kv_lens": lens - 1 - 7 * reading,
            "max_lens": np.full(chosen.num_slots, CACHE_LEN, np.int32),
            "live": np.full(chosen.num_slots, True),
        }
        plan = plan_of(chosen, fields, [int(each) for each in asked], POLICIES[method])
        rung = chosen.ladder[plan.rung]
        assert plan.q_lens.sum() <= rung.capacity
        assert plan.q_lens.max() <= rung.max_q_len
        assert (plan.q_lens >= plan.draft_lens + plan.pad_lens + 1).all()
        if not POLICIES[method].pad_inputs:
            assert not plan.pad_lens.any()

    any_state()


@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(0, 24))
def test_trim_keeps_first_tokens_before_second_ones(draft_lens, budget):
    drafted = np.arange(5)[None] < np.asarray(draft_lens)[:, None]
    kept = np.asarray(jax.jit(trim)(drafted.astype(np.float32), int32s(budget)))
    assert kept.tolist() == trimmed(draft_lens, budget)


def four_slots(**fields) -> dict:
    """Returns three slots that decode, the first of which is nearly done, and an idle one."""
    lens = np.asarray([90, 50, 10, 5])
    return {
        "lens": lens,
        "kv_lens": lens - 1,
        "max_lens": np.asarray([100, 100, 100, 100]),
        "live": np.asarray([True, True, True, False]),
        **fields,
    }


def after_steps(state: DecodeState, steps: list[int]) -> DecodeState:
    return state.replace(stats=dataclasses.replace(state.stats, target_steps=int32s(steps)))


def test_tokens_of_slots_that_are_ahead_are_worth_less_once_no_request_waits():
    state = after_steps(make_state(4, 100, 3, **four_slots()), [90, 50, 10, 5])
    assert load_of(state, True).values.tolist() == [1, 1, 1, 0]
    ahead, half, behind, idle = load_of(state, False).values.tolist()
    assert behind == 1
    assert idle == 0
    assert 0 < ahead < half < behind
    # The slot that is furthest behind is a tenth of the way to its limit.
    assert half == pytest.approx((50 / 90) ** (URGENCY * 0.1**0.5))
    assert int(load_of(state, False).live) == 3


def test_tokens_of_a_fast_slot_are_worth_less():
    """A slot's pace so far counts more, the more steps it is based on."""
    lens = {"lens": int32s([50] * 4), "prompt_lens": int32s([10] * 4)}
    state = after_steps(make_state(4, 100, 3, **four_slots(**lens)), [40, 20, 10, 0])
    slow, fast, fastest, idle = load_of(state, False).values.tolist()
    assert (slow, idle) == (1, 0)
    power = URGENCY * (40 / 90) ** 0.5
    assert fast == pytest.approx(((20 + PACE_STEPS) / (40 + PACE_STEPS)) ** power)
    assert 0 < fastest < fast
    assert load_of(state, True).values.tolist() == [1, 1, 1, 0]


def test_far_from_their_limits_all_slots_are_nearly_alike():
    """Texts may end at any time, so a fast slot is not expected to be done early."""
    lens = {"lens": int32s([20, 80, 20, 1]), "max_lens": int32s([4000] * 4)}
    state = after_steps(make_state(4, 4000, 3, **four_slots(**lens)), [20] * 4)
    assert load_of(state, False).values[1] > 0.6


def test_part_of_a_cache_block_counts_as_a_whole_block():
    lens = np.asarray([1, KV_BLOCK, KV_BLOCK + 1, 9])
    state = make_state(4, 600, 3, **four_slots(kv_lens=lens))
    assert int(load_of(state, True).cached) == 4 * KV_BLOCK


@pytest.mark.parametrize("others_wait", [True, False])
def test_rows_go_to_the_slot_with_most_left_once_no_request_waits(others_wait: bool):
    """The first slot's draft is the likeliest, but its text ends soon anyway."""
    ladder = (Rung(4, 1), Rung(6, 4), Rung(100, 100))
    costs = StepCosts(
        np.asarray([1.0, 1.1, 100.0], np.float32), np.zeros(3, np.float32), np.float32(0)
    )
    state = after_steps(make_state(4, 100, 3, **four_slots()), [90, 50, 10, 5])
    likely = np.full((4, 3), 0.8, np.float32)
    likely[0] = 0.9
    draft = Draft(np.zeros((4, 3), np.int32), int32s([3, 3, 3, 0]))
    economics = Economics(costs, load_of(state, others_wait))
    plan = make_plan(state, draft, likely, ladder, economics)
    assert plan.draft_lens.tolist() == ([2, 1, 0, 0] if others_wait else [0, 0, 3, 0])


@pytest.mark.parametrize("others_wait", [True, False])
def test_the_loop_weighs_whether_others_wait(others_wait: bool):
    state = after_steps(make_state(4, 100, 3, **four_slots()), [90, 50, 10, 5])
    costs = StepCosts(np.ones(1, np.float32), np.zeros(1, np.float32), np.float32(0))
    economics = economics_of(costs, state, others_wait)
    assert (economics.load.values[0] == 1) == others_wait
    assert economics.costs is costs
    assert economics_of(None, state, others_wait) is None
