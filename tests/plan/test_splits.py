"""Several devices, as replicas that share them: what fits, what is fastest, what is exchanged."""

from dataclasses import replace

import numpy as np
import pytest

from emsjax.costs.roofline import exchange_seconds
from emsjax.plan.estimate import estimate
from emsjax.plan.forecast import make_forecast
from emsjax.plan.program import compile_program
from emsjax.plan.splits import best_first, splits
from tests.plan.test_forecast import SMALL, setting


def llama(topology: str, slots: int, name: str = "llama-3-8b"):
    return replace(setting(name, topology, slots, length=2048), draft_length=7)


@pytest.mark.parametrize(
    ("topology", "start", "hop", "bandwidth"),
    [("v5e", 0.0, 1.0e-6, 80e9), ("h100", 6.6e-6, 0.6e-6, 360e9), ("l4", 6.6e-6, 1.0e-6, 25.6e9)],
)
def test_exchanges_by_hand(topology: str, start: float, hop: float, bandwidth: float):
    """Two sums a layer and one for the embedding, in a ring, and the choice of the token."""
    given = replace(llama(topology, 32), shards=8)
    found = exchange_seconds(given.sizes(), given.hardware, given.ladder())
    for seconds, rung in zip(found, given.ladder(), strict=True):
        waiting = start + 14 * hop
        sums = 65 * (waiting + 2 * 7 / 8 * rung.capacity * 4096 * 2 / bandwidth)
        choice = waiting + 2 * 7 / 8 * rung.capacity * 8 * 8 / bandwidth
        assert seconds == pytest.approx(sums + choice)
    alone = llama(topology, 32)
    assert not exchange_seconds(alone.sizes(), alone.hardware, alone.ladder()).any()
    # The planner's costs have them.
    more = (
        given.costs(given.sizes()).rungs - given.costs(given.sizes()._replace(exchanges=())).rungs
    )
    np.testing.assert_allclose(more, found, rtol=1e-3)


def test_norms_over_all_heads_are_exchanged_too():
    config = replace(SMALL, qk_norm="whole")
    given, plain = (replace(setting(), config=each, shards=2).sizes() for each in (config, SMALL))
    assert [*given.exchanges] == [*plain.exchanges, (2 * SMALL.num_layers, 4)]


def test_more_devices_a_replica_are_faster_for_few_samples_only():
    """Weights are read once a replica, and exchanges grow with the rows."""
    found = {each: splits(llama("h100", each), 8) for each in (1, 8, 64, 4096)}
    for samples, ways in found.items():
        shapes = [(way.setting.replicas, way.setting.shards) for way in ways]
        assert shapes == [(8, 1), (4, 2), (2, 4), (1, 8)]
        for way in ways:
            each = way.setting
            assert each.num_slots == -(-samples // each.replicas)
            assert way.memory == estimate(each).memory
            assert way.plain_rate == pytest.approx(samples / way.plain_seconds)
    best = {samples: best_first(ways)[0].setting for samples, ways in found.items()}
    assert best[1].shards == 8
    assert best[64].shards <= best[8].shards
    assert all(best_first(ways)[0].fits for samples, ways in found.items() if samples < 4096)


def test_a_plain_step_is_that_of_the_forecast():
    (*_, way) = splits(llama("v5e", 32), 8)
    forecast = make_forecast(way.setting, False, print)
    assert forecast.steps[0].seconds == pytest.approx(way.plain_seconds)
    assert forecast.largest is not None
    assert forecast.largest.num_slots == way.largest


def test_what_does_not_fit_comes_last():
    """Weights of 141 GB fit only on eight chips of 32 GB."""
    ways = splits(llama("v6e", 8, "llama-3-70b"), 8)
    assert [way.fits for way in ways] == [False, False, False, True]
    assert [way.largest > 0 for way in ways] == [False, False, False, True]
    first, *others = best_first(ways)
    assert first.setting.shards == 8
    assert len(others) == 3
    # Where nothing fits, that which holds most is the first.
    assert best_first(splits(llama("v5e", 8, "llama-3-70b"), 4))[0].setting.shards == 4


def test_a_model_that_few_numbers_divide_is_split_into_replicas():
    """SmolLM2-135M has 9 query heads and 3 key/value heads."""
    (way,) = splits(llama("v5e", 4, "smollm2-135m"), 8)
    assert (way.setting.replicas, way.setting.shards, way.setting.num_slots) == (8, 1, 1)


@pytest.mark.parametrize("shards", [4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("no_compile_cache")
def test_memory_of_a_device_is_the_compilers(shards: int):
    config = replace(SMALL, num_heads=8)
    given = replace(setting(), config=config, shards=shards)
    found, counted = compile_program(given), estimate(given).memory
    memory = found.memory
    assert memory.compiled
    alone = estimate(replace(given, shards=1)).memory
    assert memory.cache == counted.cache == alone.cache // 4
    assert counted.weights == memory.weights < alone.weights
    # The compiler pads small arrays.
    assert counted.state <= memory.state <= counted.state + 100_000
    assert found.cycles is not None
    plain, *_, prompts = found.cycles.rungs
    assert 0 < plain < prompts
