"""Drafts of the recurrent cell as trees, compared with a search in plain Python."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.drafters import Recurrent
from emsjax.drafters.beam import CHOICES, WIDEST
from emsjax.engine.draft import Draft
from emsjax.engine.drafter import COSTLY_SOURCE, SIBLING_SOURCE
from emsjax.engine.state import DecodeState
from tests.drafters.trees import paths_of
from tests.engine.setup import make_engine, recurrent, tiny_model

SLOTS, LENGTH = 3, 5


def state_of(drafter: Recurrent) -> DecodeState:
    """Returns slots that have just emitted a token, of which the last one is not live."""
    engine = make_engine(tiny_model("llama3"), drafter, SLOTS)
    state = engine.empty()
    noise = np.random.default_rng(1)
    stats = dataclasses.replace(state.stats, target_steps=jnp.ones(SLOTS, jnp.int32))
    return state.replace(
        live=jnp.asarray([True, True, False]),
        lens=jnp.full(SLOTS, 4, jnp.int32),
        kv_lens=jnp.full(SLOTS, 3, jnp.int32),
        tokens=jnp.asarray(noise.integers(3, 90, state.tokens.shape), jnp.int32),
        hidden=jnp.asarray(noise.normal(size=state.hidden.shape), state.hidden.dtype),
        stats=stats,
    )


def propose(drafter: Recurrent, state: DecodeState, length: int = LENGTH) -> Draft:
    draft, _ = jax.jit(drafter.propose, static_argnums=2)(
        state, drafter.weights, lambda survival, found=None: jnp.int32(length)
    )
    return jax.device_get(draft)


def searched(drafter: Recurrent, state: DecodeState, slot: int, width: int) -> dict[Any, float]:
    """Returns each guess, as the path of tokens that leads to it, with its share."""
    params, shared = drafter.weights
    cell, choices = drafter.merge(params), min(width, CHOICES)
    newest = int(state.tokens[slot, state.lens[slot] - 1])
    open_paths = [((), 1.0, state.hidden[slot : slot + 1], newest)]
    found: dict[Any, float] = {}
    for _ in range(LENGTH):
        grown = []
        for path, share, before, token in open_paths:
            hidden = cell(before, shared.embed(jnp.asarray([token])))
            shares = np.asarray(jax.nn.softmax(cell.logits(hidden, shared)[0]), np.float64)
            best = np.argsort(-shares)[:choices]
            for place in best:
                guess = int(shared.token_ids[place])
                grown.append(((*path, guess), share * shares[place], hidden, guess))
        found |= {path: share for path, share, _, _ in grown}
        open_paths = sorted(grown, key=lambda each: -each[1])[:width]
    return dict(sorted(found.items(), key=lambda each: -each[1])[: drafter.draft_length])


@pytest.mark.parametrize("beam_rows", [2 * SLOTS, WIDEST * SLOTS])
def test_the_tree_holds_the_likeliest_guesses(beam_rows: int):
    drafter = dataclasses.replace(recurrent(tiny_model("llama3")), beam_rows=beam_rows)
    state = state_of(drafter)
    draft = propose(drafter, state)
    assert draft.lens.tolist() == [LENGTH, LENGTH, 0]
    for slot in range(2):
        expected = searched(drafter, state, slot, beam_rows // SLOTS)
        found = paths_of(draft, slot)
        assert found.keys() == expected.keys()
        for path, share in expected.items():
            # Up to rounding: the shares are products of float32 numbers.
            assert found[path] == pytest.approx(share, rel=1e-4)
    first = draft.source == COSTLY_SOURCE
    assert (first | (draft.source == SIBLING_SOURCE))[:2].all()
    assert first[:2].any()
    assert not first[:2].all()


def test_many_slots_get_chains():
    """There is no room for branches, so the draft is that of a single path."""
    chain = recurrent(tiny_model("llama3"))
    narrow = dataclasses.replace(chain, beam_rows=2 * SLOTS - 1)
    state = state_of(chain)
    drafts = propose(chain, state), propose(narrow, state)
    assert drafts[1].parents is None
    jax.tree.map(np.testing.assert_array_equal, *drafts)


def test_a_cell_that_computes_nan_drafts_nothing():
    drafter = dataclasses.replace(recurrent(tiny_model("llama3")), beam_rows=2 * SLOTS)
    state = state_of(drafter)
    state = state.replace(hidden=state.hidden.at[0].set(jnp.nan))
    assert propose(drafter, state).lens.tolist() == [0, LENGTH, 0]
