"""Drafting rests while nothing is worth verifying, and goes on as soon as something is."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.drafters import PromptLookup
from emsjax.engine.acceptance import no_experience
from emsjax.engine.draft import Draft
from emsjax.engine.job import Job
from emsjax.engine.load import load_of
from emsjax.engine.rest import LONGEST, NEVER, PATIENCE, rested
from emsjax.engine.state import DecodeState
from emsjax.engine.step_costs import StepCosts
from emsjax.engine.step_plan import Plan, make_plan, plan_without_drafts
from emsjax.engine.worth import Economics
from tests.engine.setup import make_engine, tiny_model
from tests.engine.states import int32s, make_state, slots
from tests.ladders import short_ladder

B, K, TOKENS = 3, 4, 80


@dataclass(frozen=True)
class Counted(PromptLookup):
    """Prompt lookup whose state counts how often it was asked."""

    def init(self, num_slots: int, capacity: int) -> Any:
        del num_slots, capacity
        return jnp.zeros((), jnp.int32)

    def propose(self, state: DecodeState, weights: Any, worth: Any) -> tuple[Draft, Any]:
        return super().propose(state, weights, worth)[0], state.drafter + 1


def asked_and_text(price: float) -> tuple[int, list[int]]:
    """Decodes a text; returns how often drafts were looked up, and the text.

    Args:
      price: of a step that verifies drafts; a plain one costs 1.
    """
    engine = make_engine(tiny_model("llama"), Counted(K), 1, costs=0.0)
    plain = np.asarray([rung.max_q_len == 1 for rung in engine.ladder])
    prices = np.where(plain, 1.0, price).astype(np.float32)
    engine.use_costs(StepCosts(prices, 0 * prices, np.float32(0)))
    # A text without a token that ends it repeats itself.
    (done,) = [x for x in engine.run([Job(0, [5, 6, 7, 5, 6], TOKENS)]) if x is not None]
    return int(engine.take_state().drafter), list(done.token_ids)


def test_a_batch_that_verifies_nothing_is_rarely_asked_and_writes_the_same():
    often, text = asked_and_text(1.01)
    rarely, same = asked_and_text(1e3)
    assert text == same
    # Rests of 1, 2, ... steps follow the first tries, then one try in `LONGEST` + 1 steps.
    tries = PATIENCE + LONGEST
    left = TOKENS - PATIENCE - sum(range(1, LONGEST + 1)) - LONGEST
    assert abs(rarely - (tries + left / (LONGEST + 1))) <= 3
    assert rarely < often / 1.5


@functools.cache
def program() -> Any:
    return jax.jit(rested)


def rests(verified: list[bool], start: int = 0) -> list[int]:
    """Returns the rest that is left after each step; a step that rests verifies nothing."""
    kind = dict.fromkeys(("lens", "prompt_lens", "max_lens"), int32s([5] * B))
    state = make_state(B, 16, K, **kind, kv_lens=int32s([4] * B), live=np.ones(B, np.bool))
    experience = replace(no_experience(B), in_vain=jnp.int32(start))
    left = []
    for fruitful in verified:
        drafts = int32s([fruitful and not int(experience.rest)] + [0] * (B - 1))
        plan = Plan(drafts + 1, drafts, 0 * drafts, np.ones(B, np.bool), int32s(0))
        experience = program()(experience, state, plan)
        left.append(int(experience.rest))
    return left


def test_rests_grow_while_tries_are_in_vain_and_end_with_one_that_is_not():
    nothing = rests([False] * 200)
    assert nothing[: PATIENCE + 4] == [0] * PATIENCE + [1, 0, 2, 1]
    assert max(nothing) == LONGEST
    assert nothing[-80:].count(0) == 80 // (LONGEST + 1)
    again = rests([False] * 5 + [True] * 3 + [False] * PATIENCE)
    assert again == [0] * PATIENCE + [1, 0] + [0] * (2 + PATIENCE)
    assert not any(rests([False] * 50, NEVER))


def test_a_batch_that_reads_a_prompt_does_not_rest():
    fields = {"lens": int32s([9, 5, 5]), "kv_lens": int32s([2, 4, 4]), "live": np.ones(B, np.bool)}
    state, none = make_state(B, 16, K, **fields), int32s([0] * B)
    plan = Plan(none + 1, none, none, np.ones(B, np.bool), int32s(0))
    after = program()(replace(no_experience(B), in_vain=jnp.int32(50)), state, plan)
    assert (int(after.in_vain), int(after.rest)) == (50, 0)


LADDER = short_ladder(B, K, prefill_chunk=16)


@functools.cache
def plans() -> Any:
    def both(state: DecodeState, costs: StepCosts) -> tuple[Plan, Plan]:
        economics = Economics(costs, load_of(state, others_wait=True))
        nothing = Draft(jnp.zeros((B, K), jnp.int32), jnp.zeros(B, jnp.int32))
        likely = jnp.full((B, K), 0.5)
        return (
            make_plan(state, nothing, likely, LADDER, economics),
            plan_without_drafts(state, LADDER, K, economics),
        )

    return jax.jit(both)


@settings(max_examples=100)
@given(
    slots(B, 200),
    st.lists(st.integers(1, 5), min_size=len(LADDER), max_size=len(LADDER)),
)
def test_a_plan_without_drafts_is_that_of_an_empty_draft(fields, seconds):
    rungs = np.asarray(seconds, np.float32)
    costs = StepCosts(rungs, np.zeros_like(rungs), np.float32(0))
    state = make_state(B, 200, K, **fields)
    for whole, short in zip(*plans()(state, costs), strict=True):
        np.testing.assert_array_equal(whole, short)
