"""Drafts by hidden transfer: they are what they should be, and change no text."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.drafters import Combined, HiddenTransfer, PromptLookup
from emsjax.drafters.chains import as_chains
from emsjax.engine.draft import ROOT, Draft
from tests.drafters.test_own_layers import SLOTS, busy_state
from tests.engine.setup import (
    hidden_transfer,
    jobs,
    make_engine,
    oracle_model,
    run_all,
    tiny_model,
)
from tests.tiny import oracle


def drafted(drafter: HiddenTransfer, state: Any, length: int = 7) -> Draft:
    @jax.jit
    def propose(state: Any, weights: Any) -> Draft:
        return drafter.propose(state, weights, lambda _: jnp.full((), length, jnp.int32))[0]

    return propose(state, drafter.weights)


def reference(name: str, text: Sequence[int], drafter: HiddenTransfer) -> np.ndarray:
    """Returns logits [K, Vd] by the layers of `transformers`, which read all rows at once."""
    import torch

    model, first_layer, places = oracle(name).model, drafter.first_layer, drafter.places
    with torch.no_grad():
        inner = model(torch.tensor([text]), output_hidden_states=True, use_cache=False)
        # The newest token is known, but the target has not read it, and no pseudo state knows it.
        states = inner.hidden_states[first_layer][0, :-1]
        last = copy.deepcopy(model)
        last.layers = last.layers[first_layer:]
        if hasattr(last.config, "layer_types"):  # which layers have a window, by place
            last.config.layer_types = last.config.layer_types[first_layer:]
        maps, _ = drafter.merge(drafter.weights.state_map, drafter.weights.target)
        kernel, bias = (
            torch.tensor(np.asarray(part[...])) for part in (maps.linear.kernel, maps.linear.bias)
        )
        pseudo = (kernel @ states[-1] + bias).reshape(places, -1)
        rows = torch.cat([states, pseudo])
        hidden = last(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0, -places:]
        ids = torch.tensor(np.asarray(drafter.weights.shared.token_ids))
        return oracle(name).lm_head(hidden)[:, ids].numpy()


@pytest.mark.parametrize(("name", "first_layer"), [("llama3", 1), ("qwen2-mixed", 2)])
def test_drafts_equal_those_of_the_layers_of_transformers(name: str, first_layer: int):
    pytest.importorskip("torch")
    model = oracle_model(name)
    drafter = hidden_transfer(model, first_layer)
    state = busy_state(make_engine(model, drafter, SLOTS), steps=5)
    draft = drafted(drafter, state)
    tree = drafted(dataclasses.replace(drafter, beam_rows=2 * SLOTS), state)
    ids, seen = np.asarray(drafter.weights.shared.token_ids), set()
    for slot in range(SLOTS):
        text = np.asarray(state.tokens[slot, : int(state.lens[slot])]).tolist()
        likely = ids[np.argsort(-reference(name, text, drafter), axis=1)]
        assert int(draft.lens[slot]) == drafter.places
        assert draft.tokens[slot, : drafter.places].tolist() == likely[:, 0].tolist()
        seen |= set(likely[:, 0].tolist())
        depths: list[int] = []
        for node in range(int(tree.lens[slot])):
            parent = int(tree.parents[slot, node])
            depths.append(0 if parent == ROOT else depths[parent] + 1)
            assert int(tree.tokens[slot, node]) in likely[depths[-1], :2]
        assert max(depths) > 0
        assert len(set(depths)) < len(depths), "it does not branch"
    assert len(seen) > 4, "drafts of one token show little"
    near_the_end = state.replace(max_lens=state.lens + jnp.asarray([0, 1, 3], jnp.int32))
    assert drafted(drafter, near_the_end).tokens[2, :2].tolist() == draft.tokens[2, :2].tolist()


@pytest.mark.parametrize("method", ["ems", pytest.param("vanilla", marks=pytest.mark.slow)])
def test_whatever_drafting_writes_into_the_cache_the_text_is_the_same(method: str):
    """The cache of the vanilla method has holes, as slots accept unlike numbers of tokens."""
    model, todo = tiny_model("llama3"), jobs(8, longest=60)
    expected = [r.token_ids for r in run_all(make_engine(model, "none", 1), todo)]
    drafter: Any = hidden_transfer(model, bias=np.nan, beam_rows=2 * SLOTS)
    if method == "vanilla":
        drafter = as_chains(Combined(PromptLookup(7, 3, 1), hidden_transfer(model, bias=1e30)))
    found = run_all(make_engine(model, drafter, SLOTS, method=method), todo)
    assert [r.token_ids for r in found] == expected
    if method == "vanilla":
        assert sum(r.metrics.accepted_tokens for r in found) > 0
