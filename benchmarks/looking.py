"""An engine whose every step can be looked at: what was drafted, predicted, accepted."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emsjax.acceptance import predict
from emsjax.draft import Draft
from emsjax.drafters.base import Drafter
from emsjax.engine import Engine
from emsjax.ladder import Rung
from emsjax.loop import worth_in
from emsjax.model_protocol import Model
from emsjax.plan import Load, Plan, load_of, make_plan
from emsjax.state import DecodeState
from emsjax.worth import StepCosts


class Step(NamedTuple):
    """One step, numpy arrays.

    Attributes:
      draft: what was drafted.
      likely: float[B, k], how likely each token was thought to be accepted.
      plan: what was verified, on which rung.
      load: live slots and cached tokens.
      live: bool[B], before the step.
      live_after: bool[B]; where a text ended, what it accepted behind its end is not known.
      reading: whether a prompt was read in it.
      emitted: int[B].
      accepted: int[B].
    """

    draft: Draft
    likely: np.ndarray
    plan: Plan
    load: Load
    live: np.ndarray
    live_after: np.ndarray
    reading: bool
    emitted: np.ndarray
    accepted: np.ndarray


class LookingEngine(Engine):
    """Steps one at a time, and tells of each."""

    def __init__(
        self,
        model: Model,
        drafter: Drafter,
        ladder: Sequence[Rung],
        on_step: Callable[[Step], None],
        **options: Any,
    ):
        """As `Engine`; `on_step` is called behind every step."""
        super().__init__(model, drafter, ladder, **options)
        self._on_step = on_step

        def look(
            weights: Any, costs: StepCosts | None, state: DecodeState
        ) -> tuple[Draft, jax.Array, Plan, Load]:
            draft, _ = drafter.propose(state, weights, worth_in(ladder, costs, state))
            likely = predict(draft, state.experience)
            return draft, likely, make_plan(state, draft, likely, ladder, costs), load_of(state)

        self._look = jax.jit(look)

    def advance(self, state: DecodeState, max_steps: int, others_wait: bool) -> DecodeState:
        """One step."""
        del max_steps
        seen = jax.device_get(self._look(self.drafter.weights, self.costs, state))
        before = jax.device_get((state.live, state.lens, state.stats.accepted))
        state = super().advance(state, 1, others_wait)
        live, lens, accepted = before
        plan = seen[2]
        step = Step(
            *seen,
            live,
            np.asarray(state.live),
            bool((live & (plan.q_lens - plan.draft_lens > 1)).any()),
            np.asarray(state.lens) - lens,
            (np.asarray(state.stats.accepted) - accepted).sum(axis=1),
        )
        self._on_step(step)
        return state
