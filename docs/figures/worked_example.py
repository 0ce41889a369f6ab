"""The paper's example of two samples (arXiv 2405.07542), run through the real loop step by step.

Step 1 drafts 5 and 2 tokens and emits 4 and 1: the accepted draft tokens and the bonus token.
Step 2 drafts 2 and 5 tokens and emits 2 and 6.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless, WorthDrafting
from emsjax.engine.engine import Engine
from emsjax.engine.job import Job
from emsjax.engine.ladder import Rung
from emsjax.engine.loop import draft_tokens, plan_rows
from emsjax.engine.packing import Guesses, PackedBatch, pack
from emsjax.engine.policy import POLICIES
from emsjax.engine.state import DecodeState
from emsjax.engine.step_plan import Plan

CAPACITY, VOCAB_SIZE = 32, 64
# Token ids count up along each sample's text, so any other guess is wrong.
TEXTS = np.arange(CAPACITY, dtype=np.int32) + np.array([[0], [CAPACITY]], np.int32)
WRONG = -1
PROMPT_LENS = (3, 5)
# For each step and sample: how many tokens are drafted, and how many of them are right.
DRAFTED, RIGHT = ((5, 2), (2, 5)), ((3, 0), (1, 5))
# The capacities that the figure needs: plain steps, packed drafts, padded drafts, prompts.
LADDER = (Rung(2, 1), Rung(10, 6), Rung(12, 6), Rung(24, 24))


class KnownTexts(nnx.Module):
    """Stands in for the target: it knows the token that follows. Its cache holds the tokens."""

    dtype = jnp.dtype(jnp.float32)
    vocab_size, max_positions = VOCAB_SIZE, CAPACITY

    def cache_spec(self, num_slots: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Describes the cache: one number per token."""
        return jax.ShapeDtypeStruct((1, num_slots, capacity, 1, 1), jnp.float32)

    def __call__(
        self, batch: PackedBatch, cache: jax.Array, *, max_q_len: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the token after each row as the hidden state [T, 1], and the updated cache."""
        del max_q_len
        slots = jnp.minimum(batch.slot_ids, len(TEXTS) - 1)
        last = batch.cu_q_lens[slots + 1] - jnp.arange(batch.tokens.shape[0], dtype=jnp.int32)
        places = batch.kv_lens[slots] - last
        new = batch.tokens.astype(jnp.float32)[:, None, None]
        cache = cache.at[0, batch.slot_ids, places].set(new, mode="drop")
        following = jnp.asarray(TEXTS)[slots, jnp.minimum(batch.positions + 1, CAPACITY - 1)]
        return following.astype(jnp.float32)[:, None], cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Puts all probability on the token that follows."""
        return jax.nn.one_hot(hidden[:, 0].astype(jnp.int32), VOCAB_SIZE)


@dataclass(frozen=True)
class Scripted(Stateless):
    """Drafts as in the example."""

    draft_length: int = 5

    def propose(self, state: DecodeState, weights: Any, worth: WorthDrafting) -> tuple[Draft, Any]:
        """Drafts the right tokens first, then wrong ones."""
        del weights, worth
        step = jnp.clip(state.stats.target_steps - 1, 0, len(DRAFTED) - 1)
        slots, places = jnp.arange(2), jnp.arange(self.draft_length, dtype=jnp.int32)[None]
        lens, right = (jnp.asarray(x, jnp.int32)[step, slots] for x in (DRAFTED, RIGHT))
        at = jnp.minimum(state.lens[:, None] + places, CAPACITY - 1)
        guesses = jnp.asarray(TEXTS)[slots[:, None], at]
        return Draft(jnp.where(places < right[:, None], guesses, WRONG), lens), ()


class Seen(NamedTuple):
    """One step, numpy arrays.

    Attributes:
      plan: how many rows each slot gets.
      batch: the packed rows.
      emitted: int32[B].
      kv_lens: int32[B], valid tokens in each slot's cache after the step.
      cache: int32[B, S], the tokens whose K/V is in the cache after the step, valid or left over.
      holes: bool[B, S], the holes of each slot; only aligned caches have any.
    """

    plan: Plan
    batch: PackedBatch
    emitted: np.ndarray
    kv_lens: np.ndarray
    cache: np.ndarray
    holes: np.ndarray


@functools.cache
def run(method: str) -> list[Seen]:
    """Runs a step that reads the prompts, then returns the example's two steps."""
    sizes = {"num_slots": 2, "capacity": CAPACITY}
    engine = Engine(KnownTexts(), Scripted(), LADDER, policy=POLICIES[method], **sizes)
    state = engine.empty()
    # Marks the places that were never written.
    state = state.replace(cache=jnp.full_like(state.cache, WRONG - 1))
    for slot, length in enumerate(PROMPT_LENS):
        state = engine.admit(state, slot, Job(slot, TEXTS[slot, :length].tolist(), 20), None)
    state = engine.advance(state, 1, others_wait=False)
    steps = []
    for _ in DRAFTED:
        plan, batch = _planned(engine, state)
        before = np.asarray(state.lens)
        state = engine.advance(state, 1, others_wait=False)
        steps.append(_seen(plan, batch, np.asarray(state.lens) - before, state))
    return steps


def _planned(engine: Engine, state: DecodeState) -> tuple[Plan, PackedBatch]:
    """Returns what the loop is about to run, computed by the loop's own functions."""
    setup = engine.setup(engine.params)
    state, draft = draft_tokens(setup, (), state)
    plan = plan_rows(setup, state, draft).plan
    capacity, guesses = engine.ladder[int(plan.rung)].capacity, Guesses(draft.tokens, state.lens)
    batch = pack(state.tokens, state.kv_lens, plan.q_lens, capacity, guesses)
    return jax.device_get((plan, batch))


def _seen(plan: Plan, batch: PackedBatch, emitted: np.ndarray, state: DecodeState) -> Seen:
    cache = np.asarray(state.cache)[0, :, :, 0, 0].astype(np.int32)
    none = np.zeros(cache.shape, bool)
    holes = none if state.holes is None else np.asarray(state.holes.at)
    return Seen(plan, batch, emitted, np.asarray(state.kv_lens), cache, holes)
