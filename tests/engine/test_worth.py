"""Compares what is chosen to verify and to draft with the best of all possibilities."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.engine.ladder import Rung
from emsjax.engine.load import Load
from emsjax.engine.step_costs import CAUTION, Passes, StepCosts
from emsjax.engine.worth import Economics, most_worth, worth_drafting
from tests.engine.states import int32s

B, K = 3, 2
LADDER = (Rung(3, 1), Rung(4, K + 1), Rung(6, K + 1), Rung(9, K + 1), Rung(16, 16))
SECONDS = st.lists(st.floats(1, 10), min_size=len(LADDER) - 1, max_size=len(LADDER) - 1)


def costs_of(seconds: list[float], draft: float = 0.0, cached: float = 0.0) -> StepCosts:
    rungs = np.asarray([*seconds, np.inf], np.float32)
    return StepCosts(rungs, np.full(len(rungs), cached, np.float32), np.float32(draft))


def load_of(live: int, cached: int) -> Load:
    values = (np.arange(B) < live).astype(np.float32)
    return Load(int32s(live), values, int32s(cached))


def survivals() -> st.SearchStrategy[np.ndarray]:
    """Draws survival probabilities, falling along each draft; 0 for entries without a token."""
    one = st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0))
    rows = st.lists(st.lists(one, min_size=K, max_size=K), min_size=B, max_size=B)
    return rows.map(lambda x: np.cumprod(np.asarray(x, np.float32), axis=1))


def best_by_hand(survival: np.ndarray, live: int, costs: StepCosts, cached: int) -> float:
    """Returns the tokens per second of the best rung and the best draft lengths."""
    best = 0.0
    for rung, seconds, more in zip(LADDER, costs.rungs, costs.cached, strict=True):
        for lens in itertools.product(range(K + 1), repeat=B):
            drafted = sum(lens)
            fits = live + drafted <= rung.capacity and (rung.max_q_len > K or drafted == 0)
            if fits:
                gain = sum(survival[b, :n].sum() for b, n in enumerate(lens))
                best = max(best, (live + gain) / (seconds + more * cached))
    return best


# A pass a token, passes of two tokens, drafts of one token at most, and drafts whose first guess
# needs no rows.
PASSES = (Passes(K), Passes(K, guesses=2), Passes(1), Passes(K, spared=1, share=0.75))


@functools.cache
def program(passes: Passes | None = None):
    """Returns `worth_drafting` in these passes, or `most_worth`."""
    function, more = (most_worth, ()) if passes is None else (worth_drafting, (passes,))
    return jax.jit(
        lambda *arguments: function(
            *arguments[:-2], LADDER, Economics(arguments[-1], arguments[-2]), *more
        )
    )


@settings(max_examples=200)
@given(survivals(), st.integers(1, B), SECONDS, st.floats(0, 0.1), st.integers(0, 100))
def test_the_chosen_rung_and_drafts_are_the_best(survival, live, seconds, cached, tokens):
    costs = costs_of(seconds, cached=cached)
    load = load_of(live, tokens)
    rung, drafts, rate, promise = map(np.asarray, program()(survival, load, costs))
    assert live + drafts <= LADDER[rung].capacity
    assert LADDER[rung].max_q_len > K or drafts == 0
    best = best_by_hand(survival, live, costs, tokens)
    assert best <= promise * (1 + 1e-5)
    # The tolerance is for float32 sums of a few numbers.
    assert promise == pytest.approx(CAUTION * rate if rung == 0 else best, rel=1e-5)
    assert rate == pytest.approx(promise / (CAUTION if rung == 0 else 1), rel=1e-5)


@pytest.mark.parametrize("passes", PASSES)
@settings(max_examples=100)
@given(survivals(), survivals(), st.integers(1, B), SECONDS, st.floats(0, 5))
def test_the_chosen_draft_length_is_the_best(passes, survival, found, live, seconds, draft):
    """Plain decoding, which drafts nothing, counts `CAUTION` times."""
    costs = costs_of(seconds, draft)
    length = int(program(passes)(survival, found, load_of(live, 0), costs))
    assert length in range(0, passes.depth + 1, passes.guesses)
    rates = []
    for n in range(passes.depth + 1):
        shown = np.where(np.arange(K)[None] < n, survival, 0)
        pay = sum(1.0 for first in range(0, n, passes.guesses))
        pay -= passes.share * min(n, passes.spared)
        all_rungs = np.asarray(costs.rungs) + np.float32(pay * draft)
        better = shown.sum(axis=1, keepdims=True) > found.sum(axis=1, keepdims=True)
        expected = gains(np.where(better, shown, found), live)
        rates.append(max(CAUTION * live / all_rungs[0], *(expected / all_rungs)[1:]))
    assert rates[length] >= max(rates) * (1 - 1e-5)


def gains(survival: np.ndarray, live: int) -> np.ndarray:
    """Returns the expected tokens of a step on each rung, with the likeliest drafts that fit."""
    likeliest = np.sort(survival.ravel())[::-1]
    rooms = [rung.capacity - live if rung.max_q_len > 1 else 0 for rung in LADDER]
    return np.asarray([live + likeliest[: max(room, 0)].sum() for room in rooms])


def test_drafting_must_beat_plain_decoding_by_the_caution():
    """A draft that barely pays on expectation is not made."""
    survival, nothing = np.full((B, K), 0.5, np.float32), np.zeros((B, K), np.float32)
    load = load_of(3, 0)
    gain = (3 + 3 * K * 0.5) / 3  # The gain of full drafts on a rung that costs a plain step.
    for promise, drafted in ((CAUTION - 0.01, 0), (CAUTION + 0.01, K)):
        # The rungs for shorter drafts are too expensive.
        draft = (gain / promise - 1) / K
        costs = costs_of([1.0, 99.0, 99.0, 1.0], draft)
        assert int(program(PASSES[0])(survival, nothing, load, costs)) == drafted


def test_drafts_that_cost_more_than_they_give_are_left_out():
    survival = np.full((B, K), 0.5, np.float32)
    expensive = costs_of([1.0, 1.9, 2.8, 4.0])
    rung, drafts, *_ = program()(survival, load_of(3, 0), expensive)
    assert (int(rung), int(drafts)) == (0, 0)
    cheap = costs_of([1.0, 1.01, 1.02, 1.03])
    rung, drafts, *_ = program()(survival, load_of(3, 0), cheap)
    assert (int(rung), int(drafts)) == (3, B * K)


def test_drafting_must_beat_the_drafts_that_exist_already():
    """Without drafting, the drafts that were found would still be verified."""
    load, draft = load_of(3, 0), 0.1
    costs = costs_of([1.0, 99.0, 99.0, 1.0], draft)
    likely = np.tile(np.float32([0.8, 0.6]), (B, 1))
    nothing = np.zeros_like(likely)
    assert int(program(PASSES[0])(likely, nothing, load, costs)) == K
    assert int(program(PASSES[0])(likely, 0.9 * likely, load, costs)) == 0
    only_one = 0.9 * likely * np.float32([[1], [0], [0]])
    assert int(program(PASSES[0])(likely, only_one, load, costs)) == K


def test_a_pass_costs_the_same_whatever_is_taken_of_it():
    """Two tokens of a pass each would not pay off, but two of one pass do."""
    survival, nothing = np.full((B, K), 0.5, np.float32), np.zeros((B, K), np.float32)
    load, costs = load_of(3, 0), costs_of([1.0, 99.0, 99.0, 1.0], 0.5)
    assert int(program(PASSES[0])(survival, nothing, load, costs)) == 0
    assert int(program(PASSES[1])(survival, nothing, load, costs)) == K


def test_a_guess_that_needs_no_rows_pays_off_sooner():
    survival, nothing = np.full((B, K), 0.5, np.float32), np.zeros((B, K), np.float32)
    load, costs = load_of(3, 0), costs_of([1.0, 99.0, 99.0, 1.0], 0.5)
    assert int(program(PASSES[0])(survival, nothing, load, costs)) == 0
    assert int(program(PASSES[3])(survival, nothing, load, costs)) == 1
    cheap = costs_of([1.0, 99.0, 99.0, 1.0], 0.3)
    assert int(program(PASSES[3])(survival, nothing, load, cheap)) == K
