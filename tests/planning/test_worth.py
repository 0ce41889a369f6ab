"""What is worth verifying and drafting, against trying everything."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.ladder import Rung
from emsjax.worth import CAUTION, Load, StepCosts, most_worth, worth_drafting
from tests.units.states import int32s

B, K = 3, 2
LADDER = (Rung(3, 1), Rung(4, K + 1), Rung(6, K + 1), Rung(9, K + 1), Rung(16, 16))
SECONDS = st.lists(st.floats(1, 10), min_size=len(LADDER) - 1, max_size=len(LADDER) - 1)


def costs_of(seconds: list[float], draft: float = 0.0, cached: float = 0.0) -> StepCosts:
    rungs = np.asarray([*seconds, np.inf], np.float32)
    return StepCosts(rungs, np.full(len(rungs), cached, np.float32), np.float32(draft))


def load_of(live: int, cached: int) -> Load:
    return Load(int32s(live), np.float32(live), int32s(cached))


def survivals() -> st.SearchStrategy[np.ndarray]:
    """Falling along each draft; 0 for what may not be verified."""
    one = st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0))
    rows = st.lists(st.lists(one, min_size=K, max_size=K), min_size=B, max_size=B)
    return rows.map(lambda x: np.cumprod(np.asarray(x, np.float32), axis=1))


def best_by_hand(survival: np.ndarray, live: int, costs: StepCosts, cached: int) -> float:
    """Tokens a second of the best rung and the best lengths of all drafts."""
    best = 0.0
    for rung, seconds, more in zip(LADDER, costs.rungs, costs.cached, strict=True):
        for lens in itertools.product(range(K + 1), repeat=B):
            drafted = sum(lens)
            fits = live + drafted <= rung.capacity and (rung.max_q_len > K or drafted == 0)
            if fits:
                gain = sum(survival[b, :n].sum() for b, n in enumerate(lens))
                best = max(best, (live + gain) / (seconds + more * cached))
    return best


@functools.cache
def program(drafting: bool):
    function = worth_drafting if drafting else most_worth
    return jax.jit(lambda survival, load, costs: function(survival, load, LADDER, costs))


@settings(max_examples=200)
@given(survivals(), st.integers(1, B), SECONDS, st.floats(0, 0.1), st.integers(0, 100))
def test_nothing_is_worth_more_than_what_is_chosen(survival, live, seconds, cached, tokens):
    costs = costs_of(seconds, cached=cached)
    load = load_of(live, tokens)
    rung, drafts, rate = map(np.asarray, program(False)(survival, load, costs))
    assert live + drafts <= LADDER[rung].capacity
    assert LADDER[rung].max_q_len > K or drafts == 0
    best = best_by_hand(survival, live, costs, tokens)
    if rung == 0:
        assert best <= CAUTION * rate * (1 + 1e-5)
    else:  # float32 sums of a few numbers
        assert rate == pytest.approx(best, rel=1e-5)


@settings(max_examples=200)
@given(survivals(), st.integers(1, B), SECONDS, st.floats(0, 5))
def test_as_much_is_drafted_as_pays(survival, live, seconds, draft):
    costs = costs_of(seconds, draft)
    length = int(program(True)(survival, load_of(live, 0), costs))
    rates = []
    for n in range(K + 1):
        shown = np.where(np.arange(K)[None] < n, survival, 0)
        dearer = costs._replace(rungs=costs.rungs + np.float32(n * draft))
        rates.append(best_by_hand(shown, live, dearer, 0))
    assert rates[length] * CAUTION >= max(rates) * (1 - 1e-5)


def test_drafts_that_cost_more_than_they_give_are_left_out():
    survival = np.full((B, K), 0.5, np.float32)
    dear = costs_of([1.0, 1.9, 2.8, 4.0])
    rung, drafts, _ = program(False)(survival, load_of(3, 0), dear)
    assert (int(rung), int(drafts)) == (0, 0)
    cheap = costs_of([1.0, 1.01, 1.02, 1.03])
    rung, drafts, _ = program(False)(survival, load_of(3, 0), cheap)
    assert (int(rung), int(drafts)) == (3, B * K)
