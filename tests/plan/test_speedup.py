"""Expected speedups, compared with formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.ladder import Rung, make_ladder
from emsjax.engine.load import Load
from emsjax.engine.step_costs import CAUTION, StepCosts, without_prompts
from emsjax.engine.worth import Economics, most_worth
from emsjax.plan.speedup import Speedup, expected_speedup

SLOTS, K = 8, 3
LADDER = (Rung(8, 1), Rung(16, K + 1), Rung(32, K + 1), Rung(64, 64))


def speedup(
    seconds: tuple[float, ...], acceptance: float, context: int = 1, cached: float = 0.0
) -> Speedup:
    each = np.full(len(seconds), cached, np.float32)
    return expected_speedup(
        StepCosts(np.asarray(seconds, np.float32), each, np.float32(0)),
        LADDER,
        num_slots=SLOTS,
        context=context,
        acceptance=acceptance,
        draft_length=K,
    )


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
def test_whole_drafts_are_verified_if_rows_cost_nothing(acceptance: float):
    expected = sum(acceptance**n for n in range(K + 1))
    found = speedup((1.0, 1.0, 1.0, 1.0), acceptance)
    assert found.fixed == pytest.approx(expected)
    assert found.planned == pytest.approx(expected)
    assert found.drafted == (0 if acceptance == 0 else K)


def test_nothing_is_drafted_if_rows_are_expensive():
    found = speedup((1.0, 2.0, 4.0, 8.0), 0.4)
    assert found.fixed == pytest.approx((1 + 0.4 + 0.4**2 + 0.4**3) / 4)
    assert found.planned == pytest.approx(1.0)
    assert found.drafted == 0


def test_only_the_likeliest_tokens_are_verified_if_rows_cost_something():
    found = speedup((1.0, 1.1, 4.0, 8.0), 0.7)
    assert found.drafted == 1
    assert found.planned == pytest.approx(1.7 / 1.1)
    assert found.planned > CAUTION > found.fixed


def test_long_contexts_make_rows_cheap():
    """Reading the cache costs the same on every rung."""
    assert speedup((1.0, 2.0, 4.0, 8.0), 0.9, context=1000, cached=1.0).fixed == pytest.approx(
        1 + 0.9 + 0.9**2 + 0.9**3, rel=1e-2
    )


@pytest.mark.parametrize("slots", [1, 3, 8, 50])
def test_every_ladder_has_a_rung_for_whole_drafts(slots: int):
    ladder = make_ladder(slots, 7)
    same = StepCosts(
        np.ones(len(ladder), np.float32), np.zeros(len(ladder), np.float32), np.float32(0)
    )
    found = expected_speedup(
        same, ladder, num_slots=slots, context=1, acceptance=1.0, draft_length=7
    )
    assert found == pytest.approx((8, 7, 8))


def test_planned_steps_never_use_a_rung_for_prompts():
    """The ladder has a rung for prompts between those for drafts."""
    ladder = (Rung(16, 1), Rung(64, 64), Rung(96, 8), Rung(128, 8), Rung(256, 256))
    rungs = np.asarray([1, 1, 1.5, 2, 3], np.float32)
    costs = StepCosts(rungs, np.zeros(5, np.float32), np.float32(0))
    asked = {"num_slots": 16, "context": 1, "acceptance": 1.0, "draft_length": 7}
    free = expected_speedup(costs._replace(rungs=np.ones(5, np.float32)), ladder, **asked)
    assert (free.planned, free.fixed) == (8, 8)  # whole drafts of all slots fit the fourth rung
    assert expected_speedup(costs, ladder, **asked).planned == 4


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_one_of_the_engine(seed: int):
    """The forecast computes on the host what the planner computes on the device."""
    random = np.random.default_rng(seed)
    slots, context, acceptance = int(random.integers(1, 9)), 64, float(random.uniform(0, 1))
    ladder = LADDER
    seconds = np.sort(random.uniform(1, 3, len(ladder))).astype(np.float32)
    costs = StepCosts(seconds, random.uniform(0, 1e-3, 4).astype(np.float32), np.float32(0))
    options = {"num_slots": slots, "context": context, "acceptance": acceptance}
    found = expected_speedup(costs, ladder, draft_length=K, **options)
    powers = acceptance ** np.arange(1, K + 1, dtype=np.float32)
    survival = jnp.asarray(np.tile(powers, (slots, 1)))
    load = Load(jnp.int32(slots), jnp.ones(slots), jnp.int32(slots * context))
    device = StepCosts(*map(jnp.asarray, without_prompts(costs, ladder, K)))
    best = most_worth(survival, ladder, Economics(device, load))
    plain = slots / (costs.rungs[0] + costs.cached[0] * slots * context)
    assert found.planned == pytest.approx(float(best.rate) / plain, rel=1e-5)
    assert found.drafted == pytest.approx(int(best.drafts) / slots)
