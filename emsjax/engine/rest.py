"""Rests from drafting: while no draft is worth verifying, most steps do not look for one.

Looking drafts up, weighing them and planning take about 1 ms of a step of 27 (SmolLM2-135M-Instruct
in 16 slots on two cores), which is lost if none of them is verified in the end. That can last:
large batches fill the device, and some texts cannot be guessed. So after several steps that
verified nothing, drafting rests for one step, and for one step more after each further try in vain.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.acceptance import Experience
from emsjax.engine.draft import Draft
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan

# Steps in a row that verify nothing, after which the rests begin, and the longest rest in steps.
PATIENCE, LONGEST = 4, 7
# A number of steps for which drafting never rests, see `Experience.in_vain`.
NEVER = -(1 << 20)

Propose = Callable[[DecodeState, Any], tuple[Draft, Any]]


def unless_resting(propose: Propose, state: DecodeState, weights: Any) -> tuple[Draft, Any]:
    """Returns what `propose` returns, or an empty draft and the drafter's state as it is.

    Args:
      propose: makes a draft and the drafter's next state.
      state: the state of all slots.
      weights: the drafter's.
    """
    # Traced once, although it is called twice.
    traced = jax.jit(propose)
    shapes, _ = jax.eval_shape(traced, state, weights)
    writes = shapes.cache is not None
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes._replace(cache=None))
    nothing = nothing._replace(cache=state.cache if writes else None)

    def once(carry: tuple[jax.Array, Draft, Any]) -> tuple[jax.Array, Draft, Any]:
        _, before, mine = carry
        now = state.replace(drafter=mine)
        now = now.replace(cache=before.cache) if writes else now
        draft, mine = traced(now, weights)
        return jnp.zeros((), jnp.bool), draft, mine

    # A loop of one trip or none, as a condition would copy the caches.
    start = state.experience.rest == 0, nothing, state.drafter
    _, draft, mine = jax.lax.while_loop(lambda carry: carry[0], once, start)
    return draft, mine


def rested(experience: Experience, state: DecodeState, plan: Plan) -> Experience:
    """Returns the experience with the rest that follows a step.

    Args:
      experience: after the step, apart from rests.
      state: before the step.
      plan: of the step.
    """
    # While a prompt is read, its rows come before most drafts.
    reading = (state.live & (state.lens - state.kv_lens > 1)).any()
    resting = experience.rest > 0
    in_vain = jnp.where(plan.draft_lens.any(), 0, experience.in_vain + 1)
    in_vain = jnp.where(reading | resting, experience.in_vain, in_vain)
    next_rest = jnp.where(reading, 0, jnp.clip(in_vain - PATIENCE, 0, LONGEST))
    rest = jnp.where(resting, experience.rest - 1, next_rest)
    return dataclasses.replace(experience, in_vain=in_vain, rest=rest)
