"""The padded method and its ablations pad what they should, and generate the same text."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.draft import Draft
from emsjax.engine.drafter import Stateless
from emsjax.engine.engine import Engine
from emsjax.engine.job import Finished, Job
from emsjax.engine.loop import draft_tokens, plan_rows
from emsjax.engine.packing import Guesses, pack
from emsjax.engine.slots import STEPS_PER_CALL
from emsjax.engine.state import SlotStats
from emsjax.sampling.rows import NO_TOKEN
from tests.engine.setup import jobs, make_engine, run_all, tiny_model

SLOTS = 3
PADDED = {"vanilla": (True, True), "unpad-kv": (True, False), "unpad-input": (False, True)}


@functools.cache
def engine(method: str, drafter: str = "prompt-lookup", capacity: int = 512) -> Engine:
    return make_engine(tiny_model("llama3"), drafter, SLOTS, method=method, capacity=capacity)


def texts(results: list[Finished]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


@functools.cache
def run(method: str, drafter: str = "prompt-lookup") -> list[Finished]:
    return run_all(engine(method, drafter), jobs())


@pytest.mark.parametrize("method", PADDED)
def test_the_same_text(method: str):
    assert texts(run(method)) == texts(run("none", "none"))


def test_the_same_text_with_drafters_that_compute():
    assert texts(run("vanilla", "combined")) == texts(run("none", "none"))


def counts(method: str) -> SlotStats:
    """Returns the counters of each slot after a batch was decoded to its end."""
    ours = engine(method)
    state = ours.empty()
    for slot, job in enumerate(jobs()[:SLOTS]):
        state = ours.admit(state, slot, job, None)
    while state.live.any():
        state = ours.advance(state, STEPS_PER_CALL, others_wait=False)
    return jax.device_get(state.stats)


@pytest.mark.parametrize("method", PADDED)
def test_what_is_padded(method: str):
    inputs, cache = PADDED[method]
    counted = counts(method)
    assert counted.padded.any() == inputs
    assert counted.empty.any() == cache
    assert (counted.padded < counted.rows).all()
    assert (counted.empty <= counted.cached).all()


def test_ems_pads_nothing():
    counted = counts("ems")
    assert not counted.padded.any()
    assert not counted.empty.any()
    # Each decoding step has one row for the newest token, and one for each draft token. The step
    # that emits the first token may have read the prompt, and then its rows do not count.
    of_tokens = counted.rows - counted.drafted.sum(axis=1)
    assert ((counted.target_steps - of_tokens == 0) | (counted.target_steps - of_tokens == 1)).all()
    assert counted.drafted.any()


@pytest.mark.parametrize("method", PADDED)
def test_nothing_in_a_hole_or_past_the_texts_is_read(method: str):
    """A cache full of NaN gives the same text. Holes keep what was there before."""
    todo = jobs()
    ours = engine(method)
    clean = texts(run_all(ours, todo))
    poisoned = ours.empty()
    ours._idle = poisoned.replace(cache=jnp.full_like(poisoned.cache, jnp.nan))
    assert texts(run_all(ours, todo)) == clean


def test_a_slot_without_room_for_padding_is_not_padded():
    """Texts that fill their slots to the last position are not cut short, and nothing overflows."""
    random = np.random.default_rng(0)
    model = tiny_model("llama3")
    todo = [
        Job(n, random.integers(3, model.vocab_size, size=20 + 9 * n).tolist(), 1000)
        for n in range(4)
    ]
    plain = texts(run_all(engine("none", "none", 128), todo))
    assert [len(job.prompt) + len(text) for job, text in zip(todo, plain, strict=True)] == [128] * 4
    assert texts(run_all(engine("vanilla", capacity=128), todo)) == plain


def test_aligned_caches_grow_together():
    """After the prompt, all caches of a batch grow by the same number of positions each step."""
    ours, random, state = engine("vanilla"), np.random.default_rng(1), engine("vanilla").empty()
    for slot in range(SLOTS):
        prompt = random.integers(3, 20, size=16).tolist()
        state = ours.admit(state, slot, Job(slot, prompt * 3, 64), None)
    while not (state.lens - state.kv_lens == 1).all():
        state = ours.advance(state, 1, others_wait=False)
    for _ in range(10):
        before = jax.device_get(state.kv_lens + state.holes.counts)
        state = ours.advance(state, 1, others_wait=False)
        grown = jax.device_get(state.kv_lens + state.holes.counts) - before
        assert len(set(grown[np.asarray(state.live)].tolist())) == 1
        holes = np.asarray(state.holes.at).sum(axis=1)
        np.testing.assert_array_equal(holes, np.asarray(state.holes.counts))
    assert holes.any(), "no holes were made, so this test shows nothing"


@dataclasses.dataclass(frozen=True)
class Careless(Stateless):
    """Drafts a different number of tokens for each slot, with no token after a draft's end."""

    draft_length: int = 4
    hidden_size: int = 0
    hidden_layers: tuple[int, ...] = ()

    def propose(self, state: Any, weights: Any, worth: Any) -> tuple[Draft, tuple[()]]:
        """Drafts for every slot."""
        del weights, worth
        lens = jnp.arange(SLOTS, dtype=jnp.int32)
        tokens = jnp.where(jnp.arange(self.draft_length)[None] < lens[:, None], 5, NO_TOKEN)
        return Draft(tokens, lens), state.drafter


def test_rows_after_a_drafts_end_hold_tokens_of_the_vocabulary():
    """The padded methods compute such rows, and a model need not accept anything else."""
    ours = make_engine(tiny_model("llama3"), Careless(), SLOTS, method="vanilla")
    state = ours.empty()
    for slot, job in enumerate(jobs(SLOTS, longest=20)):
        state = ours.admit(state, slot, job, None)
    state = state.replace(kv_lens=state.lens - 1)  # as if the prompts had been read
    setup = ours.setup(ours.params)
    state, draft = draft_tokens(setup, (), state)
    plan = plan_rows(setup, state, draft).plan
    assert plan.pad_lens.any(), "nothing is padded, so this test shows nothing"
    guesses = Guesses(draft.tokens, state.lens)
    batch = pack(state.tokens, state.kv_lens, plan.q_lens, 64, guesses)
    assert ((batch.tokens >= 0) & (batch.tokens < tiny_model("llama3").vocab_size)).all()
