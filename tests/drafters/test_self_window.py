"""Drafts of the target on a part of its cache: they are what they should be, and change no text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.drafters import Combined, PromptLookup, SelfWindow
from emsjax.drafters.self_window import FIRST_STEPS, LIKELY
from emsjax.engine.acceptance import UNKNOWN
from emsjax.engine.draft import Draft
from emsjax.engine.model import View
from tests.drafters.test_own_layers import SLOTS, assert_same_texts, busy_state, results
from tests.engine.setup import jobs, make_engine, oracle_model, run_all, self_window, tiny_model
from tests.engine.test_int8_cache import with_int8_cache
from tests.tiny import oracle

VIEW = View(sink_tokens=3, window=7)


def drafting(drafter: SelfWindow) -> Callable[[Any], Draft]:
    """Returns the compiled drafter, which finds 4 tokens worth it for every slot."""

    @jax.jit
    def propose(state: Any, weights: Any) -> Draft:
        return drafter.propose(state, weights, lambda _: jnp.full((), 4, jnp.int32))[0]

    return lambda state: propose(state, drafter.weights)


def reference(name: str, text: list[int]) -> list[int]:
    """Drafts 4 tokens with PyTorch: rows of the text see all of it, those of the draft do not."""
    import torch

    model, known, places = oracle(name), len(text) - 1, np.arange(len(text) + 3)
    row, column = places[:, None], places[None]
    seen = (column > row - VIEW.window) | (column < VIEW.sink_tokens) | (row < known)
    hidden = np.where(seen & (column <= row), 0.0, -1e9)  # what is added to the scores
    for _ in range(4):
        mask = torch.tensor(hidden[: len(text), : len(text)], dtype=torch.float32)[None, None]
        with torch.no_grad():
            logits = model(torch.tensor([text]), attention_mask=mask, use_cache=False).logits
        text = [*text, int(logits[0, -1].argmax())]
    return text[-4:]


def test_drafts_equal_those_of_transformers_with_a_mask():
    pytest.importorskip("torch")
    model = oracle_model("llama3")
    state = busy_state(make_engine(model, self_window(model, VIEW), SLOTS), steps=5)
    propose = drafting(self_window(model, VIEW))
    draft, seen = propose(state), set()
    for slot in range(SLOTS):
        text = np.asarray(state.tokens[slot, : int(state.lens[slot])]).tolist()
        assert len(text) > VIEW.sink_tokens + VIEW.window
        expected = reference("llama3", text)
        assert draft.tokens[slot, : int(draft.lens[slot])].tolist() == expected
        seen |= set(expected)
    assert len(seen) > 4, "drafts of one token show little"
    whole = drafting(self_window(model, View(1, 512)))(state)
    assert (whole.tokens != draft.tokens).any(), "the window hides nothing"
    near_the_end = state.replace(max_lens=state.lens + jnp.asarray([0, 1, 3], jnp.int32))
    assert propose(near_the_end).lens.tolist() == [0, 0, 2]


def test_layers_with_a_shorter_window_keep_it():
    """A view wider than some layers' windows: one with a window of 24 sees no sink tokens."""
    model = tiny_model("qwen2-mixed")
    assert set(model.windows) == {0, 24}
    state = busy_state(make_engine(model, "none", SLOTS), steps=5)
    wide = drafting(self_window(model, View(8, 512)))(state)
    plain, tokens = state, []
    engine = make_engine(model, "none", SLOTS)
    for _ in range(4):
        plain = engine.advance(plain, 1, others_wait=False)
        tokens.append(plain.tokens[jnp.arange(SLOTS), plain.lens - 1])
    assert wide.tokens[:, :4].tolist() == jnp.stack(tokens, 1).tolist()


def hostile(model: Any, value: float) -> SelfWindow:
    """Makes a drafter whose rows fill the cache past the known text with `value`."""
    graphdef, weights = nnx.split(model)
    changed = nnx.merge(graphdef, jax.tree.map(jnp.copy, weights))
    tokens = changed.embedder.tokens
    tokens[...] = jnp.full_like(tokens[...], value)
    return self_window(changed)


@pytest.mark.slow
def test_sampled_texts_and_their_logprobs_are_those_of_plain_decoding():
    """The jobs refill the slots, some stop early, and some layers have windows."""
    model = tiny_model("qwen2-mixed")
    alone = results(make_engine(model, "none", 1), 14)
    for drafter in (self_window(model), Combined(PromptLookup(7, 3, 1), hostile(model, 1e3))):
        engine = make_engine(model, drafter, SLOTS, costs=0.5)
        assert_same_texts(engine, alone)


@pytest.mark.parametrize("method", ["ems", pytest.param("vanilla", marks=pytest.mark.slow)])
def test_whatever_drafting_writes_into_the_cache_the_text_is_the_same(method: str):
    """The cache of the vanilla method has holes, as slots accept unlike numbers of tokens."""
    model, todo = tiny_model("llama3"), jobs(8, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1), todo)]
    right: Any = self_window(model)
    bad = hostile(model, np.nan)
    for drafter in (right, bad if method == "ems" else Combined(PromptLookup(7, 3, 1), bad)):
        results = run_all(make_engine(model, drafter, SLOTS, method=method), todo)
        assert [r.token_ids for r in results] == expected
        drafted, accepted = (
            sum(getattr(r.metrics, f"{x}_tokens") for r in results) for x in ("drafted", "accepted")
        )
        assert drafted > 0
        # The window is most of these texts, so the target mostly agrees with itself.
        assert drafter is not right or accepted > 0


@pytest.mark.slow
def test_an_int8_cache_is_written_and_read_like_any_other():
    model, todo = with_int8_cache(tiny_model("llama")), jobs(6, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1, exact=True), todo)]
    for drafter in (self_window(model), hostile(model, np.nan)):
        engine = make_engine(model, drafter, SLOTS, exact=True)
        assert [r.token_ids for r in run_all(engine, todo)] == expected


def test_first_steps_are_hopeful_and_later_ones_go_by_experience():
    model, asked = tiny_model("llama"), []
    state = make_engine(model, "none", SLOTS).empty()
    ones = jnp.ones(SLOTS, jnp.int32)
    state = state.replace(live=ones > 0, lens=5 * ones, kv_lens=4 * ones, max_lens=50 * ones)
    steps = jnp.asarray([0, FIRST_STEPS - 1, FIRST_STEPS], jnp.int32)
    state = state.replace(stats=replace(state.stats, target_steps=steps))
    drafter = self_window(model)

    def worth(survival: Any) -> Any:
        asked.append(np.asarray(survival[:, 0]))
        return jnp.zeros((), jnp.int32)

    with jax.disable_jit():
        drafter.propose(state, drafter.weights, worth)
    np.testing.assert_allclose(asked[0], [LIKELY, LIKELY, UNKNOWN], rtol=1e-5)
