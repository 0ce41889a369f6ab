"""What a step costs on each rung of the ladder, measured on the device at hand."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.acceptance import SOURCES, no_experience
from emsjax.engine.drafter import COSTLY_SOURCE
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import for_drafts
from emsjax.engine.load import KV_BLOCK
from emsjax.engine.state import DecodeState
from emsjax.engine.worth import StepCosts
from emsjax.limits import MAX_STOP_IDS
from emsjax.shapes import round_up

# Tokens of each sample behind the timed steps, in whole blocks: the more, the dearer attention.
SHORT, LONG = KV_BLOCK, 4 * KV_BLOCK
# Steps timed together: at most these, as many as waiting for them is nothing against, in seconds.
MOST_STEPS, LONG_ENOUGH = 8, 0.05
# Turns: after the fewest, none is begun that is not needed, and after so many seconds none at all.
FEWEST_TURNS, MOST_TURNS, ENOUGH_SECONDS = 4, 40, 20.0
# How well costs have to be known against each other, as a share of them, to be believed.
SETTLED = 0.03
# Standard errors of a median, in the median distance from it over the root of how many there are.
ERROR_OF_MEDIAN = 1.86
# Of a step's time with short samples, what is not due to those.
LEAST_SHARE = 0.1
# Steps beyond one a slot that a draft model is given to catch up with the texts, at most.
CATCHING_UP = 100
# Log-odds that leave no doubt which drafts are good.
SURE = 20.0
# Prices that leave no choice.
CHEAP, DEAR = 1e-9, 1e9


class _Case(NamedTuple):
    """What is timed: steps on one rung, with samples of some length, drafting all or nothing."""

    rung: int
    length: int
    drafting: bool  # and then verifying nothing


class Measured(NamedTuple):
    """What was found.

    Attributes:
      costs: of each rung; those that only prompts need are infinitely dear.
      settled: whether the machine was quiet enough for another look to find the same.
    """

    costs: StepCosts
    settled: bool


def measure_costs(engine: Engine) -> Measured:
    """Times steps with all slots busy.

    The decode program itself is timed, made to choose the rung, and how much to draft, by prices
    that leave no choice. Rungs take turns, see `_typical`.
    """
    engine.forget()
    before, state = engine.costs, engine.empty()
    cases = _cases(engine)
    turns: list[list[float]] = []
    try:
        state, drafted = _caught_up(engine, state)
        # Compiles, and finds memory untouched: does not count.
        state, seconds = _time_cases(engine, state, cases, steps=1)
        steps = int(np.clip(LONG_ENOUGH / min(seconds), 1, MOST_STEPS))
        started = time.perf_counter()
        while _goes_on(turns, time.perf_counter() - started):
            state, seconds = _time_cases(engine, state, cases, steps)
            turns.append(seconds)
    finally:
        engine.use_costs(before)
    seconds = _typical(turns).tolist()
    costs = _table(engine, dict(zip(cases, seconds, strict=True)), drafted)
    return Measured(costs, _settled(turns))


def _goes_on(turns: list[list[float]], seconds: float) -> bool:
    """Whether another turn is needed, and there is time for it."""
    if len(turns) < FEWEST_TURNS:
        return True
    return not _settled(turns) and len(turns) < MOST_TURNS and seconds < ENOUGH_SECONDS


def _typical(turns: list[list[float]]) -> np.ndarray:
    """Seconds of a step in each case, as in the fastest turn, but for what is chance.

    A machine may be slow for some seconds; cases of one turn are then slow alike. What matters is
    how dear they are against each other: the median over turns.
    """
    against, speeds = _against_each_other(turns)
    return np.exp(np.median(against, axis=0) + speeds.min())


def _settled(turns: list[list[float]]) -> bool:
    """Whether more turns would hardly say anything else."""
    against, _ = _against_each_other(turns)
    # Half of the turns lie within this of the median, which lies so much closer to the truth.
    spread = np.median(np.abs(against - np.median(against, axis=0)), axis=0)
    return bool((ERROR_OF_MEDIAN * spread / np.sqrt(len(turns)) < SETTLED).all())


def _against_each_other(turns: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms: of each case's time against a turn's middle [turns, cases], of that [turns]."""
    times = np.log(turns)
    middle = np.median(times, axis=1)
    return times - middle[:, None], middle


def _time_cases(
    engine: Engine, state: DecodeState, cases: list[_Case], steps: int
) -> tuple[DecodeState, list[float]]:
    """Seconds of a step in each case, one after the other."""
    found = []
    for case in cases:
        engine.use_costs(_prices_of(engine, case))
        state, seconds = _time_steps(engine, state, case, steps)
        found.append(seconds)
    return state, found


def _lengths(engine: Engine) -> tuple[int, int]:
    """Of short and long samples before a timed step, which adds to them."""
    added = engine.drafter.draft_length + 1
    long = min(LONG, engine.capacity - 1) - added
    return min(SHORT - added, long // 2), long


def _cases(engine: Engine) -> list[_Case]:
    rungs, (short, long) = _useful(engine), _lengths(engine)
    cases = [_Case(rung, short, False) for rung in rungs]
    cases += [_Case(rung, long, False) for rung in _told_by(rungs)]
    if engine.drafter.read_bytes:
        cases.append(_Case(rungs[0], short, True))
    return cases


def _told_by(rungs: list[int]) -> list[int]:
    """The rungs on which longer samples are timed.

    A plain step attends otherwise than one with drafts; among those, what longer samples add grows
    about evenly with the rows.
    """
    return sorted({rungs[0], *rungs[1:2], rungs[-1]})


def _useful(engine: Engine) -> list[int]:
    """The rungs that are not for prompts."""
    useful = for_drafts(engine.ladder, engine.drafter.draft_length)
    return [number for number, is_useful in enumerate(useful) if is_useful]


def _prices(engine: Engine, rung: int, draft: float = DEAR) -> StepCosts:
    """Such that the planner can only choose this rung."""
    rungs = np.ones(len(engine.ladder), np.float32)
    rungs[rung] = CHEAP
    return StepCosts(rungs, np.zeros_like(rungs), np.float32(draft))


def _prices_of(engine: Engine, case: _Case) -> StepCosts:
    """Such that the planner can only choose this case."""
    # Drafting all for a plain step has to seem to save time.
    gain = CHEAP / (2 * max(engine.drafter.draft_length, 1))
    return _prices(engine, case.rung, -gain if case.drafting else DEAR)


def _table(engine: Engine, seconds: dict[_Case, float], drafted: int) -> StepCosts:
    useful, (short, long) = _useful(engine), _lengths(engine)
    read_short, read_long = (engine.num_slots * round_up(n, KV_BLOCK) for n in (short, long))
    # More rows never cost less: where they seem to, the machine was slow.
    at_short = np.minimum.accumulate([seconds[_Case(r, short, False)] for r in useful[::-1]])[::-1]
    told = _told_by(useful)
    more = [seconds[_Case(r, long, False)] - seconds[_Case(r, short, False)] for r in told]
    each = np.maximum(more, 0.0) / max(read_long - read_short, engine.num_slots * KV_BLOCK)
    capacities = np.asarray([rung.capacity for rung in engine.ladder])
    rungs = np.full(len(engine.ladder), np.inf, np.float32)
    cached = np.zeros_like(rungs)
    drafting = told[1:] or told
    cached[useful] = np.interp(capacities[useful], capacities[drafting], each[-len(drafting) :])
    cached[useful[0]] = each[0]
    # Noise may seem to say that nothing is left but the cache, or less than of fewer rows.
    without = at_short - cached[useful] * read_short
    rungs[useful] = np.maximum.accumulate(np.maximum(without, LEAST_SHARE * at_short))
    left = np.maximum(at_short - rungs[useful], 0.0) / read_short
    cached[useful] = np.minimum(cached[useful], left)
    draft = 0.0
    if engine.drafter.read_bytes:
        plain = useful[0]
        more_time = seconds[_Case(plain, short, True)] - seconds[_Case(plain, short, False)]
        draft = max(more_time, 0.0) / max(drafted, 1)
    return StepCosts(rungs, cached, np.float32(draft))


def _busy(engine: Engine, state: DecodeState, case: _Case) -> DecodeState:
    """All slots in the middle of a text.

    It repeats itself, so that drafts are found where they cost nothing. Only so many of them are
    trusted as fill the rung: a few whole drafts are dearer than many short ones, for attention
    reads the cache of a slot with many rows more than once. Where drafting is timed nothing found
    is trusted, so that the draft model is asked.
    """
    slots = engine.num_slots
    lens = jnp.full(slots, case.length, jnp.int32)
    drafting = -(-(engine.ladder[case.rung].capacity - slots) // engine.drafter.draft_length)
    trust = jnp.where(jnp.arange(slots)[:, None] < drafting, SURE, -SURE)
    trust = jnp.broadcast_to(trust, (slots, SOURCES))
    if case.drafting:
        trust = jnp.full((slots, SOURCES), -SURE).at[:, COSTLY_SOURCE].set(SURE)
    experience = dataclasses.replace(no_experience(slots), slots=trust)
    return state.replace(
        tokens=jnp.zeros_like(state.tokens),
        lens=lens,
        prompt_lens=lens + 0,
        kv_lens=lens - 1,
        max_lens=jnp.full(slots, engine.capacity, jnp.int32),
        stop_ids=jnp.full((slots, MAX_STOP_IDS), -1, jnp.int32),
        live=jnp.ones(slots, jnp.bool),
        # As behind the first token, which would end a call.
        stats=dataclasses.replace(
            jax.tree.map(jnp.zeros_like, state.stats), target_steps=jnp.ones_like(lens)
        ),
        experience=experience,
    )


def _caught_up(engine: Engine, state: DecodeState) -> tuple[DecodeState, int]:
    """The state once drafts come for every slot, and how many tokens each of them then has.

    A draft model first has to read the texts.
    """
    if not engine.drafter.read_bytes:
        return state, 0
    widest = _useful(engine)[-1]
    engine.use_costs(_prices(engine, widest, draft=0.0))
    for _ in range(engine.num_slots + CATCHING_UP):
        busy = _busy(engine, state, _Case(widest, _lengths(engine)[0], True))
        state = engine.advance(busy, 1, others_wait=False)
        if (state.stats.drafted[:, 0] > 0).all():
            break
    return state, int((state.stats.drafted[0] > 0).sum())


def _time_steps(
    engine: Engine, state: DecodeState, case: _Case, steps: int
) -> tuple[DecodeState, float]:
    """The state after steps in the middle of the same texts, and the seconds of one."""
    state = jax.block_until_ready(_busy(engine, state, case))
    started = time.perf_counter()
    for number in range(steps):
        state = _busy(engine, state, case) if number else state
        state = engine.advance(state, 1, others_wait=False)
    state = jax.block_until_ready(state)
    return state, (time.perf_counter() - started) / steps
