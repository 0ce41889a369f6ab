"""Costs are estimated until measuring them pays off; the text is the same either way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emsjax.costs import table as cost_table
from emsjax.costs.hardware import HARDWARE, PROCESSOR, hardware_like
from emsjax.costs.measure import Measured
from emsjax.costs.pricing import ENOUGH_TOKENS, Pricing, guessed_costs, look_ahead
from emsjax.costs.table import ENOUGH_LOOKS, CostTable
from emsjax.engine.engine import Engine
from emsjax.engine.step_costs import StepCosts
from tests.engine.setup import jobs, make_engine, run_all, tiny_model

SLOTS = 2


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(tiny_model("llama"), "combined", SLOTS, costs=1.0)


class Machine:
    """A stand-in for the timed machine; counts measurements, and may be quiet or busy."""

    def __init__(self) -> None:
        self.measured, self.quiet = 0, True

    def measure(self, engine: Engine) -> Measured:
        self.measured += 1
        seconds = np.full(len(engine.ladder), self.measured, np.float32)
        return Measured(StepCosts(seconds, 0 * seconds, np.float32(0)), self.quiet)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path))
    machine = Machine()
    monkeypatch.setattr(cost_table, "measure_costs", machine.measure)
    return machine


def request(max_tokens: int, n: int = 1) -> Any:
    return SimpleNamespace(max_tokens=max_tokens, params=SimpleNamespace(n=n))


SHORT, LONG = [request(ENOUGH_TOKENS)], [request(ENOUGH_TOKENS)] * SLOTS


def test_a_short_run_uses_estimates(engine: Engine, machine: Machine, tmp_path: Path):
    assert list(Pricing(engine, "tiny").before_run(SHORT)) == SHORT
    assert machine.measured == 0
    assert not (tmp_path / "step-costs").exists()
    for ours, guessed in zip(engine.costs, guessed_costs(engine), strict=True):
        np.testing.assert_array_equal(ours, guessed)


def test_a_long_run_measures_once(engine: Engine, machine: Machine):
    pricing = Pricing(engine, "tiny")
    for _ in range(2):
        assert list(pricing.before_run(LONG)) == LONG
        assert engine.costs.rungs[0] == 1.0
    Pricing(engine, "tiny").before_run(LONG)
    assert machine.measured == 1
    assert engine.costs.rungs[0] == 1.0


def test_every_output_of_a_prompt_counts(engine: Engine, machine: Machine):
    Pricing(engine, "tiny").before_run([request(ENOUGH_TOKENS, n=SLOTS)])
    assert machine.measured == 1


def test_many_short_runs_add_up_to_a_long_one(engine: Engine, machine: Machine):
    pricing = Pricing(engine, "tiny")
    for measured in (0, 1, 1):
        pricing.before_run(SHORT)
        assert machine.measured == measured


def test_costs_from_a_busy_machine_are_used_until_a_long_run_measures_again(
    engine: Engine, machine: Machine
):
    machine.quiet = False
    Pricing(engine, "tiny").before_run(LONG)
    pricing = Pricing(engine, "tiny")
    pricing.before_run(SHORT)
    assert (machine.measured, engine.costs.rungs[0]) == (1, 1.0)
    pricing.before_run(LONG)
    assert (machine.measured, engine.costs.rungs[0]) == (2, 1.5), "the mean of both measurements"
    machine.quiet = True
    pricing.before_run(LONG)
    assert (machine.measured, engine.costs.rungs[0]) == (3, 3.0)
    known = CostTable(engine, "tiny").read()
    assert known is not None
    assert known.settled


def test_enough_measurements_on_a_busy_machine_are_trusted(engine: Engine, machine: Machine):
    machine.quiet = False
    for _ in range(ENOUGH_LOOKS + 1):
        Pricing(engine, "tiny").before_run(LONG)
    assert machine.measured == ENOUGH_LOOKS
    assert engine.costs.rungs[0] == np.mean(np.arange(ENOUGH_LOOKS) + 1.0)


def test_a_damaged_table_is_reported(engine: Engine, machine: Machine, tmp_path: Path, capsys):
    Pricing(engine, "tiny").before_run(LONG)
    (file,) = (tmp_path / "step-costs").glob("*")
    file.write_text("{")
    Pricing(engine, "tiny").before_run(SHORT)
    assert "is damaged" in capsys.readouterr().err
    assert machine.measured == 1


def test_the_text_does_not_depend_on_the_costs(engine: Engine):
    """If all steps cost the same, drafts are free; if wide ones are expensive, few are drafted."""
    todo, costs = jobs(6), guessed_costs(engine)
    drafts = np.isfinite(costs.rungs)
    free = costs._replace(rungs=np.where(drafts, np.float32(1), costs.rungs), draft=np.float32(0))
    steep = free._replace(rungs=free.rungs * np.float32(1e3) ** np.arange(len(drafts), dtype="f"))
    found = []
    for prices in (free, steep):
        engine.use_costs(prices)
        found.append(run_all(engine, todo))
    texts = [[result.token_ids for result in results] for results in found]
    drafted = [sum(result.metrics.drafted_tokens for result in results) for results in found]
    assert texts[0] == texts[1]
    assert drafted[0] > 5 * drafted[1]


def test_guessed_costs_make_sense(engine: Engine):
    costs = guessed_costs(engine)
    assert (np.diff(costs.rungs) >= 0).all()
    assert (costs.rungs > 0).all()
    assert (costs.cached > 0).all()
    assert 0 < costs.draft < costs.rungs[0]
    assert guessed_costs(make_engine(tiny_model("llama"), "prompt-lookup", SLOTS)).draft == 0


def test_looking_ahead_takes_no_more_requests_than_needed():
    taken: list[Any] = []

    def source():
        for request_ in [request(5), request(5), None, request(5)]:
            taken.append(request_)
            yield request_

    tokens, again = look_ahead(source(), 8)
    assert (tokens, len(taken)) == (10, 2)
    assert list(again) == taken
    assert len(taken) == 4
    taken.clear()
    assert look_ahead(source(), 1000)[0] == 10, "a request that is not available yet ends it"
    assert len(taken) == 3
    assert look_ahead(source(), 0)[0] == 0


def test_an_error_in_taking_a_request_is_raised_when_the_run_comes_to_it():
    def source():
        yield from SHORT
        raise ValueError("line 2")

    again = look_ahead(source(), 10 * ENOUGH_TOKENS)[1]
    assert next(again) is SHORT[0]
    with pytest.raises(ValueError, match="line 2"):
        next(again)


@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("tpu", "TPU v4", "v4"),
        ("tpu", "TPU v5 lite", "v5e"),
        ("tpu", "TPU v5", "v5p"),
        ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v6 lite", "v6e"),
        ("tpu", "TPU v99", "v5e"),
        ("gpu", "NVIDIA H100 80GB HBM3", "h100"),
        ("gpu", "NVIDIA H200", "h200"),
        ("gpu", "NVIDIA A100-SXM4-80GB", "a100"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("gpu", "NVIDIA B200", "b200"),
        ("gpu", "NVIDIA L4", "l4"),
        ("gpu", "Tesla T4", "t4"),
        ("gpu", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "g4"),
        ("gpu", "Tesla V100-SXM2-16GB", "a100"),
    ],
)
def test_devices_are_known_by_their_kind(platform: str, kind: str, name: str):
    assert hardware_like(platform, kind) is HARDWARE[name]


def test_a_processor_hides_part_of_the_reading():
    assert hardware_like("cpu", "cpu") is PROCESSOR
    assert 0 < PROCESSOR.exposed < 1


def test_a_run_without_end_measures_once_it_has_become_long(engine: Engine, machine: Machine):
    pauses: list = []
    stream = Pricing(engine, "tiny").before_run([None, *LONG, *LONG], pauses.append)
    taken = iter(stream)
    assert [next(taken) for _ in range(SLOTS)] == [None, *LONG[1:]]
    assert pauses == []
    next(taken)
    (measure,) = pauses
    assert machine.measured == 0
    measure()
    assert (machine.measured, engine.costs.rungs[0]) == (1, 1.0)
    assert list(taken) == LONG
    assert len(pauses) == 1


def test_a_service_measures_before_its_first_request(engine: Engine, machine: Machine):
    pricing = Pricing(engine, "tiny")
    pricing.before_service()
    pricing.before_service()
    assert (machine.measured, engine.costs.rungs[0]) == (1, 1.0)
