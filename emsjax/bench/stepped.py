"""An engine that steps part by part, so that each part can be timed and looked at."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.draft import Draft
from emsjax.engine.engine import Engine
from emsjax.engine.load import Load, load_of
from emsjax.engine.loop import (
    Forward,
    Planned,
    Setup,
    draft_tokens,
    economics_of,
    plan_rows,
    run_target,
    take_note,
)
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan
from emsjax.engine.verify import commit, count_accepted

PARTS = ("draft", "plan", "target", "verify")


class Step(NamedTuple):
    """One step, numpy arrays.

    Attributes:
      draft: what was drafted.
      likely: float[B, k], how likely each token was thought to be accepted.
      plan: what was verified, on which rung.
      load: live slots and cached tokens.
      lens: int[B], known tokens before the step.
      prompt_lens: int[B].
      live: bool[B], before the step.
      live_after: bool[B]; where a text ended, what it accepted behind its end is not known.
      emitted: int[B].
      accepted: int[B].
      seconds: of each of `PARTS`; verifying includes committing.
    """

    draft: Draft
    likely: np.ndarray
    plan: Plan
    load: Load
    lens: np.ndarray
    prompt_lens: np.ndarray
    live: np.ndarray
    live_after: np.ndarray
    emitted: np.ndarray
    accepted: np.ndarray
    seconds: dict[str, float]

    @property
    def reading(self) -> bool:
        """Whether a prompt was read in it."""
        return bool((self.live & (self.plan.q_lens - self.plan.draft_lens > 1)).any())


class SteppedEngine(Engine):
    """Steps one at a time, and tells of each. The parts are programs of their own.

    Each then costs a launch, and nothing is fused across them: what is not the target's pass looks
    dearer than it is in the loop.
    """

    def __init__(self, *arguments: Any, on_step: Callable[[Step], None], **options: Any):
        """As `Engine`; `on_step` is called behind every step."""
        super().__init__(*arguments, **options)
        self._on_step = on_step
        self._parts = _Parts(self)

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """One step."""
        del max_steps
        waits = jnp.asarray(others_wait)
        parts, seconds = self._parts, dict.fromkeys(PARTS, 0.0)
        load, economics = load_of(state, waits), economics_of(self.costs, state, waits)
        before = jax.device_get((state.lens, state.prompt_lens, state.live, state.stats.accepted))
        # Only the target's pass has to do with the cache.
        cache, state = state.cache, state.replace(cache=jnp.zeros((), state.cache.dtype))
        jax.block_until_ready((cache, state))

        def timed(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
            started = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            seconds[part] = time.perf_counter() - started
            return result

        state, draft = timed("draft", parts.draft, self.drafter.weights, state, economics)
        planned: Planned = timed("plan", parts.plan, state, draft, economics)
        result: Forward = timed("target", parts.target, cache, state, draft, planned.plan)
        cache, result = result.cache, result._replace(cache=state.cache)
        state = timed("verify", parts.verify, state, draft, planned, result)
        lens, prompt_lens, live, accepted = before
        draft, planned, load = jax.device_get((draft, planned, load))
        self._on_step(
            Step(
                draft,
                np.asarray(planned.likely),
                planned.plan,
                load,
                lens,
                prompt_lens,
                live,
                live_after=np.asarray(state.live),
                emitted=np.asarray(state.lens) - lens,
                accepted=(np.asarray(state.stats.accepted) - accepted).sum(axis=1),
                seconds=seconds,
            )
        )
        return state.replace(cache=cache)


class _Parts:
    """The parts of a step, compiled one by one."""

    def __init__(self, engine: Engine):
        self.draft = _compiled(engine, draft_tokens, donated=2)
        self.plan = _compiled(engine, plan_rows)
        self.target = _compiled(engine, _target, donated=1)
        self.verify = jax.jit(_verify, donate_argnums=0)


def _compiled(
    engine: Engine, function: Callable[..., Any], donated: int | tuple[()] = ()
) -> Callable[..., Any]:
    """The function of a loop's setup, which is argument 0 of those that may be donated."""

    def part(params: nnx.State, *arguments: Any) -> Any:
        with jax.default_matmul_precision(engine.precision):
            return function(engine.setup(params), *arguments)

    return partial(jax.jit(part, donate_argnums=donated), engine.params)


def _target(
    setup: Setup, cache: jax.Array, state: DecodeState, draft: Draft, plan: Plan
) -> Forward:
    return run_target(setup, state.replace(cache=cache), draft, plan)


def _verify(state: DecodeState, draft: Draft, planned: Planned, result: Forward) -> DecodeState:
    accepted = count_accepted(draft, planned.plan.draft_lens, result.chosen.tokens)
    state = take_note(state, draft, planned, result, accepted)
    return commit(state, draft, planned.plan, accepted, result.chosen)
