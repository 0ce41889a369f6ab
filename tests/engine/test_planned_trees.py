"""Plans of trees whose confidence experience has corrected, compared with all possible plans."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.acceptance import SOURCES, no_experience, predict
from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.ladder import Rung
from emsjax.engine.load import load_of
from emsjax.engine.loop import Setup, plan_rows
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import CAUTION, StepCosts
from emsjax.engine.step_plan import Planned
from emsjax.engine.worth import Economics
from tests.engine.states import int32s, make_state

B, K = 2, 4
LADDER = (Rung(2, 1), Rung(4, K + 1), Rung(6, K + 1), Rung(10, K + 1))


@functools.cache
def program() -> Any:
    def plan(state: DecodeState, draft: Draft, costs: StepCosts) -> tuple[Planned, jax.Array]:
        economics = Economics(costs, load_of(state, others_wait=True))
        setup: Any = Setup(None, None, LADDER)
        return plan_rows(setup, state, draft, economics), predict(draft, state.experience)

    return jax.jit(plan)


@st.composite
def trees(draw: Any) -> Draft:
    parents = [[draw(st.integers(ROOT, j - 1)) for j in range(K)] for _ in range(B)]
    one = st.sampled_from((0.02, 0.1, 0.3, 0.6, 0.9, 0.98))
    said = [[draw(one) for _ in range(K)] for _ in range(B)]
    source = [[draw(st.integers(0, SOURCES - 1)) for _ in range(K)] for _ in range(B)]
    tokens = np.broadcast_to(np.arange(K, dtype=np.int32), (B, K))
    lens = int32s([draw(st.integers(0, K)) for _ in range(B)])
    confidence = np.asarray(said, np.float32)
    return Draft(tokens, lens, confidence, int32s(source), int32s(parents))


def survival_by_hand(likely: np.ndarray, parents: np.ndarray) -> np.ndarray:
    survival = np.zeros(likely.shape)
    for slot, guess in itertools.product(range(B), range(K)):
        above = parents[slot, guess]
        survival[slot, guess] = likely[slot, guess] * (survival[slot, above] if above >= 0 else 1)
    return survival


def subtrees(parents: np.ndarray, length: int) -> list[tuple[int, ...]]:
    """Returns all sets of a slot's guesses in which each guess's parent is, too."""
    some = (s for n in range(length + 1) for s in itertools.combinations(range(length), n))
    return [s for s in some if all(parents[g] == ROOT or parents[g] in s for g in s)]


@settings(max_examples=150)
@given(
    trees(),
    st.lists(st.floats(1, 4), min_size=len(LADDER), max_size=len(LADDER)),
    st.lists(st.floats(-2, 2), min_size=B * SOURCES, max_size=B * SOURCES),
)
def test_no_other_choice_of_guesses_promises_more(draft, seconds, offsets):
    fields = {"lens": int32s([5] * B), "kv_lens": int32s([4] * B), "max_lens": int32s([90] * B)}
    state = make_state(B, 100, K, **fields, live=np.ones(B, np.bool))
    slots = np.asarray(offsets, np.float32).reshape(B, SOURCES)
    state = state.replace(experience=replace(no_experience(B), slots=slots))
    prices = np.asarray(seconds, np.float32)
    costs = StepCosts(prices, np.zeros_like(prices), np.float32(0))
    planned, likely = jax.device_get(program()(state, draft, costs))
    survival = survival_by_hand(likely, draft.parents)
    best = 0.0
    choices = [subtrees(draft.parents[slot], draft.lens[slot]) for slot in range(B)]
    for (number, rung), chosen in itertools.product(enumerate(LADDER), itertools.product(*choices)):
        count = sum(map(len, chosen))
        if B + count <= rung.capacity and (rung.max_q_len > 1 or not count):
            gain = sum(survival[slot, list(of)].sum() for slot, of in enumerate(chosen))
            best = max(best, (B + gain) / prices[number] * (CAUTION if number == 0 else 1))
    taken = np.arange(K) < planned.plan.draft_lens[:, None]
    ours = survival_by_hand(planned.likely, planned.draft.parents)
    rung = int(planned.plan.rung)
    promise = (B + ours[taken].sum()) / prices[rung] * (CAUTION if rung == 0 else 1)
    assert planned.plan.q_lens.sum() <= LADDER[rung].capacity
    assert promise == pytest.approx(best, rel=1e-4)
    # What is taken of a slot is a tree.
    for slot, length in enumerate(planned.plan.draft_lens):
        assert (planned.draft.parents[slot, :length] < np.arange(length)).all()
