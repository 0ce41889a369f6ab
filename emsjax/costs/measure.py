"""Measures the cost of a step on each rung of the ladder, on the current device."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.acceptance import SOURCES, no_experience
from emsjax.engine.drafter import COSTLY_SOURCE, passes_of
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import for_drafts
from emsjax.engine.load import KV_BLOCK
from emsjax.engine.rest import NEVER
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.limits import MAX_STOP_IDS
from emsjax.shapes import round_up

# Tokens of each sample after a timed step, in whole blocks. Attention is slower with longer ones.
SHORT, LONG = KV_BLOCK, 4 * KV_BLOCK
# Steps are timed together: enough to take this many seconds, which dwarf the time of waiting for
# the device, and at most this many.
MOST_STEPS, LONG_ENOUGH = 8, 0.05
# A turn times every case once. After the fewest turns, another one starts only if the costs have
# not settled and the time is not used up, see `_needs_another_turn`.
FEWEST_TURNS, MOST_TURNS, ENOUGH_SECONDS = 4, 40, 20.0
# Largest standard error of the costs, relative to each other, at which they count as settled.
SETTLED = 0.03
# The standard error of the median of n values is this factor times their median absolute deviation
# over the square root of n.
ERROR_OF_MEDIAN = 1.86
# Least share of a step's time with short samples that does not depend on the cache.
LEAST_SHARE = 0.1
# The most steps, besides one per slot, in which a draft model may catch up with the texts.
CATCHING_UP = 100
# Log-odds that make a source of drafts fully trusted, or with a minus sign never trusted.
SURE = 20.0
# The number of different tokens that a timed text repeats. If its rows were equal, they would all
# choose the same experts.
PERIOD = 16
# Prices in seconds that leave the planner one choice.
CHEAP, EXPENSIVE = 1e-9, 1e9


class _Case(NamedTuple):
    """The steps that one measurement times.

    Attributes:
      rung: index into the ladder.
      length: tokens of each sample before the step.
      drafting: whether the draft model drafts for every slot, and nothing is verified.
    """

    rung: int
    length: int
    drafting: bool


class Measured(NamedTuple):
    """The result of a measurement.

    Attributes:
      costs: of each rung; rungs that only prompts need cost infinitely much.
      settled: whether the machine was quiet enough for another measurement to find the same.
    """

    costs: StepCosts
    settled: bool


def measure_costs(engine: Engine) -> Measured:
    """Times steps in which all slots are busy.

    The real decode program is timed. Prices that leave its planner no choice decide the rung and
    how much is drafted. The cases take turns, see `_typical`.

    Args:
      engine: its costs are set during the measurement and restored after it.
    """
    engine.forget()
    before, state = engine.costs, engine.take_state()
    cases = _cases(engine)
    turns: list[list[float]] = []
    try:
        state, drafted = _caught_up(engine, state)
        # Does not count: it compiles, and touches memory for the first time.
        state, seconds = _time_cases(engine, state, cases, steps=1)
        steps = int(np.clip(LONG_ENOUGH / min(seconds), 1, MOST_STEPS))
        started = time.perf_counter()
        while _needs_another_turn(turns, time.perf_counter() - started):
            state, seconds = _time_cases(engine, state, cases, steps)
            turns.append(seconds)
    finally:
        engine.use_costs(before)
    seconds = _typical(turns).tolist()
    costs = _table(engine, dict(zip(cases, seconds, strict=True)), drafted)
    return Measured(costs, _settled(turns))


def _needs_another_turn(turns: list[list[float]], seconds: float) -> bool:
    """Whether the costs have not settled yet, and turns and seconds remain."""
    if len(turns) < FEWEST_TURNS:
        return True
    return not _settled(turns) and len(turns) < MOST_TURNS and seconds < ENOUGH_SECONDS


def _typical(turns: list[list[float]]) -> np.ndarray:
    """Seconds of a step in each case, at the speed of the fastest turn.

    A machine may be slow for some seconds, which slows all cases of one turn alike. So the ratios
    of the cases to each other are medians over turns, and only the scale is the fastest turn's.
    """
    ratios, speeds = _relative(turns)
    return np.exp(np.median(ratios, axis=0) + speeds.min())


def _settled(turns: list[list[float]]) -> bool:
    """Whether the medians of all cases are known well enough for more turns to change little."""
    ratios, _ = _relative(turns)
    deviation = np.median(np.abs(ratios - np.median(ratios, axis=0)), axis=0)
    return bool((ERROR_OF_MEDIAN * deviation / np.sqrt(len(turns)) < SETTLED).all())


def _relative(turns: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Splits log seconds into cases relative to their turn's median, and these medians.

    Returns:
      Relative times [turns, cases] and medians [turns], both logarithms.
    """
    times = np.log(turns)
    middle = np.median(times, axis=1)
    return times - middle[:, None], middle


def _time_cases(
    engine: Engine, state: DecodeState, cases: list[_Case], steps: int
) -> tuple[DecodeState, list[float]]:
    """Times every case once; returns the state and the seconds of a step in each case."""
    found = []
    for case in cases:
        engine.use_costs(_prices_of(engine, case))
        state, seconds = _time_steps(engine, state, case, steps)
        found.append(seconds)
    return state, found


def _lengths(engine: Engine) -> tuple[int, int]:
    """Tokens of short and of long samples before a timed step, as far as the capacity allows."""
    # Room for the tokens that the step adds: samples are in whole blocks after it.
    added = engine.drafter.draft_length + 1
    long = min(LONG, engine.capacity - 1) - added
    return min(SHORT - added, long // 2), long


def _cases(engine: Engine) -> list[_Case]:
    rungs, (short, long) = _useful(engine), _lengths(engine)
    cases = [_Case(rung, short, False) for rung in rungs]
    cases += [_Case(rung, long, False) for rung in _rungs_with_long_samples(rungs)]
    if engine.drafter.read_bytes:
        cases.append(_Case(rungs[0], short, True))
    return cases


def _rungs_with_long_samples(rungs: list[int]) -> list[int]:
    """The rungs on which long samples are timed as well.

    A plain step attends in another way than a step with drafts, so the plain rung is timed. For
    steps with drafts, the time that longer samples add grows about linearly with the rows, so the
    narrowest and the widest rung are enough.
    """
    return sorted({rungs[0], *rungs[1:2], rungs[-1]})


def _useful(engine: Engine) -> list[int]:
    """Indices of the rungs that are not only for prompts."""
    useful = for_drafts(engine.ladder, engine.drafter.draft_length)
    return [number for number, is_useful in enumerate(useful) if is_useful]


def _prices(engine: Engine, rung: int, draft: float = EXPENSIVE) -> StepCosts:
    """Prices with which the planner chooses this rung."""
    rungs = np.ones(len(engine.ladder), np.float32)
    rungs[rung] = CHEAP
    return StepCosts(rungs, np.zeros_like(rungs), np.float32(draft))


def _prices_of(engine: Engine, case: _Case) -> StepCosts:
    """Prices with which the planner chooses this case."""
    # With a negative price, drafting for a step that verifies nothing seems to save time.
    gain = CHEAP / (2 * max(engine.drafter.draft_length, 1))
    return _prices(engine, case.rung, -gain if case.drafting else EXPENSIVE)


def _table(engine: Engine, seconds: dict[_Case, float], drafted: float) -> StepCosts:
    """Splits the measured seconds into costs of rungs, of cached tokens and of drafting.

    Args:
      engine: that was timed.
      seconds: of a step in each case of `_cases`.
      drafted: passes of the draft model in the cases that draft, see `Passes.price`.
    """
    useful, (short, long) = _useful(engine), _lengths(engine)
    read_short, read_long = (engine.num_slots * round_up(n, KV_BLOCK) for n in (short, long))
    # More rows never cost less. If they seem to, the machine was slow during the narrower step.
    at_short = np.minimum.accumulate([seconds[_Case(r, short, False)] for r in useful[::-1]])[::-1]
    timed = _rungs_with_long_samples(useful)
    more = [seconds[_Case(r, long, False)] - seconds[_Case(r, short, False)] for r in timed]
    each = np.maximum(more, 0.0) / max(read_long - read_short, engine.num_slots * KV_BLOCK)
    capacities = np.asarray([rung.capacity for rung in engine.ladder])
    rungs = np.full(len(engine.ladder), np.inf, np.float32)
    cached = np.zeros_like(rungs)
    drafting = timed[1:] or timed
    cached[useful] = np.interp(capacities[useful], capacities[drafting], each[-len(drafting) :])
    cached[useful[0]] = each[0]
    # Noise can make the cache seem to take the whole step, or a wide rung cheaper than a narrow
    # one.
    without = at_short - cached[useful] * read_short
    rungs[useful] = np.maximum.accumulate(np.maximum(without, LEAST_SHARE * at_short))
    rest = np.maximum(at_short - rungs[useful], 0.0) / read_short
    cached[useful] = np.minimum(cached[useful], rest)
    draft = 0.0
    if engine.drafter.read_bytes:
        plain = useful[0]
        more_time = seconds[_Case(plain, short, True)] - seconds[_Case(plain, short, False)]
        draft = max(more_time, 0.0) / (drafted or 1)
    return StepCosts(rungs, cached, np.float32(draft))


def _busy(engine: Engine, state: DecodeState, case: _Case) -> DecodeState:
    """A state in which all slots are in the middle of a text.

    The text repeats itself, so that drafters which look drafts up find them. Drafts are trusted
    only in as many slots as fill the rung: a few full drafts cost more than many short ones,
    because attention reads the cache of a slot with many rows more than once. If drafting is timed,
    no looked-up draft is trusted, so that the draft model must draft. Drafting never rests.
    """
    slots = engine.num_slots
    lens = jnp.full(slots, case.length, jnp.int32)
    drafting = -(-(engine.ladder[case.rung].capacity - slots) // engine.drafter.draft_length)
    trust = jnp.where(jnp.arange(slots)[:, None] < drafting, SURE, -SURE)
    trust = jnp.broadcast_to(trust, (slots, SOURCES))
    if case.drafting:
        trust = jnp.full((slots, SOURCES), -SURE).at[:, COSTLY_SOURCE].set(SURE)
    experience = dataclasses.replace(
        no_experience(slots), slots=trust, in_vain=jnp.asarray(NEVER, jnp.int32)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.stats)
    return state.replace(
        tokens=_texts(engine, case.length),
        lens=lens,
        prompt_lens=lens + 0,
        kv_lens=lens - 1,
        max_lens=jnp.full(slots, engine.capacity, jnp.int32),
        stop_ids=jnp.full((slots, MAX_STOP_IDS), -1, jnp.int32),
        live=jnp.ones(slots, jnp.bool),
        # Slots have emitted before: a call of the decode program ends after a slot's first token.
        stats=dataclasses.replace(zeros, target_steps=jnp.ones_like(lens)),
        experience=experience,
    )


def _texts(engine: Engine, length: int) -> jax.Array:
    """Returns int32[B, S], a text in each slot that repeats a few tokens.

    A drafter remembers the longest text in which it looked, and the latest place of what it finds.
    So long texts begin like short ones, but change to other tokens before a short one ends.
    """
    short, _ = _lengths(engine)
    period = int(np.clip((short - 1) // 2, 1, PERIOD))
    places = np.arange(engine.capacity)
    later = (places >= short - 1) & (length > short)
    tokens = np.arange(engine.num_slots)[:, None] * PERIOD + places % period + later * period
    return jnp.asarray(tokens % engine.setup(engine.params).model.vocab_size, jnp.int32)


def _caught_up(engine: Engine, state: DecodeState) -> tuple[DecodeState, float]:
    """Steps until the draft model, which must read the texts first, drafts for every slot.

    Returns:
      The state, and how many passes make a draft; 0 for drafters without a model.
    """
    if not engine.drafter.read_bytes:
        return state, 0
    widest = _useful(engine)[-1]
    engine.use_costs(_prices(engine, widest, draft=0.0))
    for _ in range(engine.num_slots + CATCHING_UP):
        busy = _busy(engine, state, _Case(widest, _lengths(engine)[0], True))
        state = engine.advance(busy, 1, others_wait=False)
        drafted = np.asarray(state.stats.drafted)
        if (drafted[:, 0] > 0).all():
            break
    # A tree is less deep than it is long, but what is timed are the passes of the deepest draft.
    passes = passes_of(engine.drafter, engine.num_slots)
    return state, passes.price(passes.depth) if drafted[0].any() else 0


def _time_steps(
    engine: Engine, state: DecodeState, case: _Case, steps: int
) -> tuple[DecodeState, float]:
    """Runs steps from the middle of the same texts; returns the state and the seconds of a step."""
    state = jax.block_until_ready(_busy(engine, state, case))
    started = time.perf_counter()
    for number in range(steps):
        state = _busy(engine, state, case) if number else state
        state = engine.advance(state, 1, others_wait=False)
    state = jax.block_until_ready(state)
    return state, (time.perf_counter() - started) / steps
