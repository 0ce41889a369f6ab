"""An engine that steps part by part, so that each part can be timed and inspected."""

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
    Setup,
    draft_tokens,
    economics_of,
    keep_path,
    plan_rows,
    run_target,
    take_note,
)
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan, Planned
from emsjax.engine.verify import Verdict, commit, verify

PARTS = ("draft", "plan", "target", "verify")


class Step(NamedTuple):
    """A record of one step, as numpy arrays.

    Attributes:
      draft: the draft tokens.
      likely: float[B, k], the predicted probability that each draft token is accepted.
      plan: the rows that were verified, and the rung.
      load: live slots and cached tokens.
      lens: int[B], known tokens before the step.
      prompt_lens: int[B], tokens of the prompts.
      live: bool[B], whether each slot was live before the step.
      live_after: bool[B], whether it still is. If a text ended in this step, nothing is known of
        the acceptance of draft tokens after its end.
      emitted: int[B], tokens emitted.
      verdict: which draft tokens the target accepted.
      seconds: time of each of `PARTS`; "verify" includes the commit.
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
    verdict: Verdict
    seconds: dict[str, float]

    @property
    def reading(self) -> bool:
        """Whether the step read rows of a prompt."""
        return bool((self.live & (self.plan.q_lens - self.plan.draft_lens > 1)).any())


class SteppedEngine(Engine):
    """An engine that runs one step at a time and reports each; every part is a separate program.

    Each part then costs a launch, and nothing is fused across parts. Except for the target's pass,
    parts look more expensive than they are in the real loop.
    """

    def __init__(self, *arguments: Any, on_step: Callable[[Step], None], **options: Any):
        """Takes the arguments of `Engine`, and `on_step`, which is called after every step."""
        super().__init__(*arguments, **options)
        self._on_step = on_step
        self._parts = _Parts(self)

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """Runs one step, whatever `max_steps` is."""
        del max_steps
        waits = jnp.asarray(others_wait)
        parts, seconds = self._parts, dict.fromkeys(PARTS, 0.0)
        economics = economics_of(self.costs, state, waits)
        load = load_of(state, waits) if economics is None else economics.load
        before = jax.device_get((state.lens, state.prompt_lens, state.live, state.kv_lens))
        jax.block_until_ready(state)

        def timed(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
            started = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            seconds[part] = time.perf_counter() - started
            return result

        state, draft = timed("draft", parts.draft, self.drafter.weights, state, economics)
        # The parts after the target's pass do not use the cache, and get an empty one in its place.
        cache, state = state.cache, state.replace(cache=jnp.zeros((), state.cache.dtype))
        planned: Planned = timed("plan", parts.plan, state, draft, economics)
        arguments = self.drafter.weights, cache, state, planned
        result: Forward = timed("target", parts.target, *arguments)
        cache, result = result.cache, result._replace(cache=state.cache)
        state, verdict = timed("verify", parts.verify, state, planned, result)
        lens, prompt_lens, live, kv_lens = before
        cache, mine = parts.keep_path((cache, state.drafter), kv_lens, verdict)
        planned, load, verdict = jax.device_get((planned, load, verdict))
        self._on_step(
            Step(
                planned.draft,
                np.asarray(planned.likely),
                planned.plan,
                load,
                lens,
                prompt_lens,
                live,
                live_after=np.asarray(state.live),
                emitted=np.asarray(state.lens) - lens,
                verdict=verdict,
                seconds=seconds,
            )
        )
        return state.replace(cache=cache, drafter=mine)


class _Parts:
    """The parts of a step, each compiled separately."""

    def __init__(self, engine: Engine):
        self.draft = _compiled(engine, draft_tokens, donated=2)
        self.plan = _compiled(engine, plan_rows)
        self.target = _compiled(engine, _target, donated=2)
        self.verify = jax.jit(_verify, donate_argnums=0)
        self.keep_path = _compiled(engine, keep_path, donated=1)


def _compiled(
    engine: Engine, function: Callable[..., Any], donated: int | tuple[()] = ()
) -> Callable[..., Any]:
    """Compiles a function of the loop's setup and further arguments.

    Args:
      engine: whose parameters and precision are used.
      function: takes the setup first.
      donated: the argument of `function` to donate, counted with the setup as 0.
    """

    def part(params: nnx.State, *arguments: Any) -> Any:
        with jax.default_matmul_precision(engine.precision):
            return function(engine.setup(params), *arguments)

    return partial(jax.jit(part, donate_argnums=donated), engine.params)


def _target(
    setup: Setup, weights: Any, cache: jax.Array, state: DecodeState, planned: Planned
) -> Forward:
    return run_target(setup, weights, state.replace(cache=cache), planned)


def _verify(state: DecodeState, planned: Planned, result: Forward) -> tuple[DecodeState, Verdict]:
    verdict = verify(
        planned.draft.tokens, planned.plan.draft_lens, result.chosen.tokens, planned.tree
    )
    state = take_note(state, planned, result, verdict)
    return commit(state, planned, verdict, result.chosen), verdict
