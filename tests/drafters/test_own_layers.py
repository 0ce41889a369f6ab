"""Drafts of the target's own last layers: they are what they should be, and change no text."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.drafters import Combined, OwnLayers, PromptLookup
from emsjax.engine.draft import Draft
from emsjax.engine.job import Job
from emsjax.models.state_map import StateMap, StateMapConfig
from tests.engine.setup import (
    jobs,
    make_engine,
    oracle_model,
    own_layers,
    run_all,
    tiny_model,
)
from tests.engine.test_int8_cache import with_int8_cache
from tests.sampling.test_seeds import sampled_jobs
from tests.tiny import oracle

SLOTS = 3


def linear_map(model: Any, first_layer: int, scale: float) -> StateMap:
    """Returns a random map whose guesses are about as large as the states it reads."""
    width, (vocab_size, embedded) = model.hidden_size, model.embedder.tokens.shape
    sizes = width, embedded, vocab_size, model.num_layers, first_layer
    state_map = StateMap(StateMapConfig(*sizes, width=0), rngs=nnx.Rngs(5))
    state_map.linear.bias[...] = jnp.linspace(-scale, scale, width)
    return state_map


def busy_state(engine: Any, steps: int) -> Any:
    """Returns the state after some steps, with slots at different places of their texts."""
    state = engine.empty()
    for slot in range(SLOTS):
        prompt = np.random.default_rng(slot).integers(3, 100, 9 + 20 * slot).tolist()
        state = engine.admit(state, slot, Job(slot, prompt, 48), None)
    while int(state.stats.target_steps.min()) < steps:
        state = engine.advance(state, 1, others_wait=False)
    return state


def drafting(drafter: OwnLayers) -> Callable[[Any], Draft]:
    """Returns the compiled drafter, which finds 4 tokens worth it for every slot."""

    @jax.jit
    def propose(state: Any, weights: Any) -> Draft:
        return drafter.propose(state, weights, lambda _: jnp.full((), 4, jnp.int32))[0]

    return lambda state: propose(state, drafter.weights)


def reference(name: str, text: Sequence[int], first_layer: int, state_map: Any, ids: Any) -> list:
    """Drafts 4 tokens with the layers of `transformers`, which read the whole text each time."""
    import torch

    model = oracle(name).model
    embed = model.embed_tokens.weight
    with torch.no_grad():
        inner = model(torch.tensor([text]), output_hidden_states=True, use_cache=False)
        # The newest token is known, but the target has not read it yet.
        states = inner.hidden_states[first_layer][0, :-1]
        last = copy.deepcopy(model)
        last.layers = last.layers[first_layer:]
        if hasattr(last.config, "layer_types"):  # which layers have a window, by place
            last.config.layer_types = last.config.layer_types[first_layer:]
        token, guesses = text[-1], []
        for _ in range(4):
            guess = state_map(
                jnp.asarray(states[-1:].numpy()), jnp.asarray(embed[token : token + 1].numpy())
            )
            states = torch.cat([states, torch.tensor(np.asarray(guess))])
            hidden = last(inputs_embeds=states[None], use_cache=False).last_hidden_state[0, -1:]
            logits = oracle(name).lm_head(hidden)[0, torch.tensor(ids)]
            token = int(ids[int(logits.argmax())])
            guesses.append(token)
    return guesses


@pytest.mark.parametrize(("name", "first_layer"), [("llama3", 1), ("qwen2-mixed", 2)])
def test_drafts_equal_those_of_the_layers_of_transformers(name: str, first_layer: int):
    pytest.importorskip("torch")
    model = oracle_model(name)
    state_map = linear_map(model, first_layer, 1.0)
    drafter = own_layers(model, state_map, first_layer)
    state = busy_state(make_engine(model, drafter, SLOTS), steps=5)
    propose = drafting(drafter)
    draft, seen = propose(state), set()
    for slot in range(SLOTS):
        text = np.asarray(state.tokens[slot, : int(state.lens[slot])]).tolist()
        ids = np.asarray(drafter.weights.shared.token_ids)
        expected = reference(name, text, first_layer, state_map, ids)
        assert draft.tokens[slot, : int(draft.lens[slot])].tolist() == expected
        seen |= set(expected)
    assert len(seen) > 4, "drafts of one token show little"
    near_the_end = state.replace(max_lens=state.lens + jnp.asarray([0, 1, 3], jnp.int32))
    assert propose(near_the_end).lens.tolist() == [0, 0, 2]


def results(engine: Any, count: int) -> list[tuple]:
    """Returns tokens and their log-probabilities."""
    done = run_all(engine, sampled_jobs(count))
    return [(r.token_ids, None if r.logprobs is None else r.logprobs.chosen) for r in done]


def assert_same_texts(engine: Any, alone: list[tuple]) -> None:
    """Checks that an engine gives the texts and log-probabilities of `results` of another one."""
    for (tokens, chosen), (expected, plain) in zip(results(engine, len(alone)), alone, strict=True):
        assert tokens == expected
        if plain is not None:
            np.testing.assert_allclose(chosen, plain, atol=1e-4)


def hostile(model: Any, value: float) -> OwnLayers:
    """Makes a draft whose rows fill the cache past the known text with `value`."""
    state_map = linear_map(model, 1, 1.0)
    state_map.linear.bias[...] = jnp.full(model.hidden_size, value)
    return own_layers(model, state_map)


@pytest.mark.slow
def test_sampled_texts_and_their_logprobs_are_those_of_plain_decoding():
    """The jobs refill the slots, some stop early, and some layers have windows."""
    model = tiny_model("qwen2-mixed")
    alone = results(make_engine(model, "none", 1), 14)
    for drafter in (own_layers(model), Combined(PromptLookup(7, 3, 1), hostile(model, 1e3))):
        engine = make_engine(model, drafter, SLOTS, costs=0.5)
        assert_same_texts(engine, alone)


@pytest.mark.parametrize("method", ["ems", pytest.param("vanilla", marks=pytest.mark.slow)])
def test_whatever_drafting_writes_into_the_cache_the_text_is_the_same(method: str):
    """The cache of the vanilla method has holes, as slots accept unlike numbers of tokens."""
    model, todo = tiny_model("llama3"), jobs(8, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1), todo)]
    drafter: Any = hostile(model, np.nan)
    if method == "vanilla":
        drafter = Combined(PromptLookup(7, 3, 1), hostile(model, 1e30))
    results = run_all(make_engine(model, drafter, SLOTS, method=method), todo)
    assert [r.token_ids for r in results] == expected
    if method == "vanilla":
        assert sum(r.metrics.accepted_tokens for r in results) > 0


@pytest.mark.slow
def test_an_int8_cache_is_written_and_read_like_any_other():
    model, todo = with_int8_cache(tiny_model("llama")), jobs(6, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1, exact=True), todo)]
    for drafter in ("own-layers", hostile(model, np.nan)):
        engine = make_engine(model, drafter, SLOTS, exact=True)
        assert [r.token_ids for r in run_all(engine, todo)] == expected
