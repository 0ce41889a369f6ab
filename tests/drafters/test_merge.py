"""Merging a chain into a tree, compared with a search through all paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.drafters.merge import merge
from emsjax.engine.draft import ROOT, Draft

GUESSES, CHAIN, ROOM, TOKENS = 4, 3, 5, 3
merged = jax.jit(merge, static_argnums=3)


@st.composite
def trees(draw: Any) -> tuple[list[int], list[int]]:
    """Draws tokens and parents; guesses with the same parent differ."""
    tokens: list[int] = []
    parents: list[int] = []
    for place in range(draw(st.integers(0, GUESSES))):
        parent = draw(st.integers(ROOT, place - 1))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        if free := sorted(set(range(TOKENS)) - taken):
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    return tokens, parents


def likely(length: int) -> st.SearchStrategy[list[float]]:
    # Few enough digits for products that are exact in float32, so that ties are ties here too.
    return st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=length, max_size=length)


def padded(values: list[Any], length: int, dtype: Any) -> jax.Array:
    """One slot's values; what follows them must not matter."""
    rest = [7] * (length - len(values))
    return jnp.asarray([[*values, *rest]], dtype)


def paths_of(tokens: Any, parents: Any, values: Any) -> dict[Any, float]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), int(token)))
    return dict(zip(paths, values, strict=True))


@given(trees(), st.lists(st.integers(0, TOKENS - 1), max_size=CHAIN), st.data())
@settings(max_examples=150, deadline=None)
def test_the_merged_tree_holds_the_likeliest_guesses_of_both(
    tree: Any, chain: list[int], data: st.DataObject
):
    tokens, parents = tree
    ours = data.draw(likely(len(tokens)))
    theirs = data.draw(likely(len(chain)))
    draft = Draft(
        padded(tokens, GUESSES, jnp.int32),
        jnp.asarray([len(tokens)], jnp.int32),
        padded(ours, GUESSES, jnp.float32),
        padded([1] * len(tokens), GUESSES, jnp.int32),
        jnp.asarray([[*parents, *range(len(parents) - 1, GUESSES - 1)]], jnp.int32),
    )
    found = Draft(
        padded(chain, CHAIN, jnp.int32),
        jnp.asarray([len(chain)], jnp.int32),
        padded(theirs, CHAIN, jnp.float32),
        padded([0] * len(chain), CHAIN, jnp.int32),
    )
    result = jax.device_get(merged(draft, found, (draft.confidence, found.confidence), ROOM))

    factors = paths_of(tokens, parents, ours)
    for path, factor in paths_of(chain, range(-1, len(chain) - 1), theirs).items():
        factors[path] = max(factor, factors.get(path, 0.0))
    survival = {
        path: float(np.prod([factors[path[: n + 1]] for n in range(len(path))])) for path in factors
    }
    length = min(len(survival), ROOM)
    assert result.lens.tolist() == [length]
    kept = (x[0, :length] for x in (result.tokens, result.parents, result.confidence))
    kept = paths_of(*kept)
    assert len(kept) == length
    for path, confidence in kept.items():
        assert confidence == pytest.approx(factors[path])
    best = sorted(survival.values(), reverse=True)[:length]
    assert [survival[path] for path in kept] == pytest.approx(best), "sorted, and none is better"
