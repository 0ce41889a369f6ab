"""Costs are measured once for a model, a device and a batch, and kept on disk."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from emsjax.bench.stepped import Step, SteppedEngine
from emsjax.costs import measure as step_costs
from emsjax.costs import table as cost_table
from emsjax.costs.measure import Measured, measure_costs
from emsjax.costs.table import CostTable, known_costs
from emsjax.drafters import PromptLookup
from emsjax.engine.drafter import COSTLY_SOURCE
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import make_ladder
from emsjax.engine.load import KV_BLOCK
from emsjax.shapes import round_up
from tests.engine.setup import jobs, make_engine, run_all, tiny_model


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(tiny_model("llama"), "combined", 2, costs=1.0)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_costs, "ENOUGH_SECONDS", 0.0)


@pytest.fixture(scope="module")
def quiet() -> Callable[[Engine], Measured]:
    """`measure_costs` on a quiet machine, which times each engine only once."""
    return functools.cache(lambda engine: measure_costs(engine)._replace(settled=True))


@pytest.fixture
def measured(
    quiet: Callable[[Engine], Measured], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[Engine]:
    """The engines that were measured, on a quiet machine and with an empty cache directory."""
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path))
    engines: list[Engine] = []

    def measure(engine: Engine) -> Measured:
        engines.append(engine)
        return quiet(engine)

    monkeypatch.setattr(cost_table, "measure_costs", measure)
    return engines


def test_an_int8_cache_has_costs_of_its_own():
    """On CPU its numbers have the same shape as those of another cache."""
    files = set()
    for kv_dtype in (None, "int8"):
        model = nnx.merge(*nnx.split(tiny_model("llama")))
        model.kv_dtype = kv_dtype
        files.add(CostTable(make_engine(model, "none", 2), "llama")._file)
    assert len(files) == 2


def table(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "step-costs").glob("*")
    return file


def test_costs_are_measured_once(engine: Engine, measured: list[Engine], tmp_path: Path):
    first = known_costs(engine, "tiny")
    again = known_costs(engine, "tiny")
    assert measured == [engine]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert json.loads(table(tmp_path).read_text())["model"] == "tiny"
    known_costs(engine, "another")
    assert len(measured) == 2


def test_costs_make_sense(engine: Engine):
    costs = measure_costs(engine).costs
    drafting = [rung.max_q_len <= engine.drafter.draft_length + 1 for rung in engine.ladder]
    assert np.isfinite(costs.rungs).tolist() == drafting
    assert (costs.rungs > 0).all()
    assert (costs.cached >= 0).all()
    assert costs.draft >= 0
    assert engine.costs.draft == 1.0, "the engine's own costs are restored"


def test_the_rows_of_timed_steps_differ(engine: Engine):
    """Equal rows would choose equal experts, and a wide step would read no more of them."""
    state = engine.empty()
    short, long = step_costs._lengths(engine)
    rung = step_costs._useful(engine)[-1]
    for length in (short, long, short):
        case = step_costs._Case(rung, length, False)
        engine.use_costs(step_costs._prices_of(engine, case))
        state, _ = step_costs._time_steps(engine, state, case, 1)
        assert (state.stats.drafted.sum(axis=1) > 0).all()
        busy = step_costs._busy(engine, state, case)
        lookup = busy.replace(drafter=busy.drafter[0])
        looked, _ = engine.drafter.lookup.propose(lookup, (), None)
        assert (looked.lens == engine.drafter.lookup.draft_length).all()
        assert all(len(set(tokens)) == len(tokens) for tokens in np.asarray(looked.tokens).tolist())


def test_measuring_leaves_the_engine_as_it_was(engine: Engine):
    todo = jobs(6)
    before = [r.token_ids for r in run_all(engine, todo)]
    measure_costs(engine)
    assert [r.token_ids for r in run_all(engine, todo)] == before


IMPOSSIBLE = {
    "negative": {"rungs": -1.0},
    "all infinite": {"rungs": None},
    "zero in float32": {"rungs": 1e-300},
    "infinite in float32": {"rungs": 1e300},
    "infinitely many looks": {"looks": float("inf")},
    "no looks": {"looks": 0},
}
BROKEN = ("", "{", '{"rungs": []}', '{"rungs": 3}', "[" * 100000)


@pytest.mark.parametrize("content", [*BROKEN, *IMPOSSIBLE])
def test_a_damaged_table_is_reported_and_measured_again(
    engine: Engine, measured: list[Engine], tmp_path: Path, content: str
):
    known_costs(engine, "tiny")
    file = table(tmp_path)
    whole = json.loads(file.read_text())
    change = dict(IMPOSSIBLE.get(content, {}))
    if "rungs" in change:
        change["rungs"] = [change["rungs"]] * len(whole["rungs"])
    file.write_text(json.dumps(whole | change) if change else content)
    said: list[str] = []
    known_costs(engine, "tiny", said.append)
    assert len(measured) == 2
    assert "is damaged" in said[0]
    assert str(file) in said[0]
    known_costs(engine, "tiny", said.append)
    assert (len(measured), len(said)) == (2, 1), "the new table is not damaged"


def test_a_cache_directory_that_cannot_be_written_only_costs_time(
    engine: Engine, measured: list[Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path / "file"))
    assert known_costs(engine, "tiny").draft >= 0
    assert measured == [engine]


def test_costs_from_a_busy_machine_are_kept_as_not_settled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("EMSJAX_CACHE", str(tmp_path))
    chance = np.random.default_rng(0)
    monkeypatch.setattr(
        step_costs,
        "_time_steps",
        lambda _engine, state, _case, _steps: (state, 2.0 ** chance.uniform(-3, 3)),
    )
    first = known_costs(engine, "tiny")
    known = CostTable(engine, "tiny").read()
    assert known is not None
    assert (known.settled, known.looks) == (False, 1)
    np.testing.assert_array_equal(known.costs.rungs, first.rungs)
    known_costs(engine, "tiny")
    known = CostTable(engine, "tiny").read()
    assert known is not None
    assert known.looks == 2, "costs that are not settled are measured again"


def test_a_slow_turn_changes_no_cost(engine: Engine):
    """The scale is that of the fastest turn, the ratios of cases are those of most turns."""
    cases = len(step_costs._cases(engine))
    true = 1.0 + np.arange(cases) / cases
    slow = [9.0, 3.0, 1.0, 2.0, 5.0]
    turns = [true * each for each in slow]
    turns[2] = turns[2] * np.where(np.arange(cases) == cases - 1, 4.0, 1.0)  # One slow case.
    np.testing.assert_allclose(step_costs._typical([list(turn) for turn in turns]), true)


def test_a_quiet_machine_is_timed_in_the_fewest_turns(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    timed: list[int] = []

    def time_steps(_engine: Engine, state, _case, steps: int):
        timed.append(steps)
        return state, 1.0

    monkeypatch.setattr(step_costs, "_time_steps", time_steps)
    monkeypatch.setattr(step_costs, "ENOUGH_SECONDS", 100.0)
    assert measure_costs(engine).settled
    assert len(timed) == (1 + step_costs.FEWEST_TURNS) * len(step_costs._cases(engine))


def test_each_rung_is_timed_with_few_long_drafts_that_fill_it():
    engine = make_engine(tiny_model("llama"), "prompt-lookup", 4)
    plans: dict[int, list[int]] = {}
    watched = SteppedEngine(
        tiny_model("llama"),
        engine.drafter,
        engine.ladder,
        on_step=lambda step: plans.setdefault(int(step.plan.rung), step.plan.draft_lens.tolist()),
        num_slots=4,
        capacity=engine.capacity,
    )
    measure_costs(watched)
    length = engine.drafter.draft_length
    for number in step_costs._useful(engine):
        room = engine.ladder[number].capacity - 4 if number else 0
        assert sum(plans[number]) == min(room, 4 * length)
        assert sum(each > 0 for each in plans[number]) == min(-(-room // length), 4)


@pytest.mark.parametrize("drafter", ["itself", "recurrent", "combined", "tree", "self-window"])
def test_drafting_is_timed_in_steps_that_draft_and_verify_nothing(
    drafter: str, monkeypatch: pytest.MonkeyPatch
):
    """The draft model drafts full drafts for all slots; in all other cases it drafts nothing."""
    engine = make_engine(tiny_model("llama"), drafter, 3, costs=1.0)
    model = getattr(engine.drafter, "model", engine.drafter)
    steps: list[Step] = []
    watched = SteppedEngine(
        tiny_model("llama"),
        engine.drafter,
        engine.ladder,
        on_step=steps.append,
        num_slots=3,
        capacity=engine.capacity,
        costs=engine.costs,
    )
    timed: list[list[Step]] = []
    time_steps = step_costs._time_steps

    def watch(*arguments: Any):
        steps.clear()
        result = time_steps(*arguments)
        timed.append(list(steps))
        return result

    monkeypatch.setattr(step_costs, "_time_steps", watch)
    measure_costs(watched)
    cases = step_costs._cases(engine)
    assert len(timed) == (1 + step_costs.FEWEST_TURNS) * len(cases)
    for number, seen in enumerate(timed):
        case = cases[number % len(cases)]
        for step in seen:
            assert step.plan.rung == case.rung
            place = np.arange(step.draft.tokens.shape[1])
            costly = (step.draft.source == COSTLY_SOURCE) & (place < step.draft.lens[:, None])
            guessed = costly.sum(axis=1)
            if case.drafting:
                # Branches and what was looked up take the places of some guesses in a tree.
                least = 1 if drafter == "tree" else model.draft_length
                assert (guessed >= least).all()
                assert not step.plan.draft_lens.any()
            else:
                assert not guessed.any()


def test_other_weights_have_another_table(monkeypatch: pytest.MonkeyPatch):
    """This holds even if model and drafter have the same names."""
    engines = [
        make_engine(tiny_model(name), "recurrent", 2, costs=1.0) for name in ("llama", "gpt2")
    ]
    keys = [cost_table._what(engine, "tiny") for engine in engines]
    assert keys[0]["weights"] != keys[1]["weights"]
    assert keys[0]["drafter"][1] == cost_table._what(engines[0], "tiny")["drafter"][1]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 2, 3})
    assert ", 3 cores" in cost_table._what(engines[0], "tiny")["device"]


def test_the_cost_of_cached_tokens_is_interpolated_between_rungs_with_drafts():
    """The interpolation leaves out the plain rung, since a plain step attends in another way."""

    def blocks(case: Any) -> int:
        return round_up(case.length, KV_BLOCK)

    engine = make_engine(tiny_model("llama"), "prompt-lookup", 4, make=make_ladder)
    useful = step_costs._useful(engine)
    capacities = np.asarray([rung.capacity for rung in engine.ladder])[useful]
    base, each = 0.1 + 0.01 * capacities, 1e-6 * (20 + capacities)
    each[0] = 1e-6
    seconds = {
        case: base[useful.index(case.rung)] + each[useful.index(case.rung)] * 4 * blocks(case)
        for case in step_costs._cases(engine)
    }
    costs = step_costs._table(engine, seconds, drafted=0)
    assert len(useful) > 3
    np.testing.assert_allclose(costs.cached[useful], each, rtol=1e-5)
    np.testing.assert_allclose(costs.rungs[useful], base, rtol=1e-5)


def test_a_custom_drafter_without_a_repr_finds_its_table(measured: list[Engine]):
    """The default repr has an address, which differs between processes."""

    class Own(PromptLookup):
        __repr__ = object.__repr__

    for _ in range(2):
        known_costs(make_engine(tiny_model("llama"), Own(), 2, costs=1.0), "tiny")
    assert len(measured) == 1
