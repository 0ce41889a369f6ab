"""Merging two trees, compared with a search through all paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.drafters.merge import merge
from emsjax.engine.draft import ROOT, Draft

GUESSES, OTHERS, ROOM, TOKENS = 4, 3, 5, 3
merged = jax.jit(merge, static_argnums=3)


@st.composite
def trees(draw: Any, most: int) -> tuple[list[int], list[int]]:
    """Draws tokens and parents; guesses with the same parent differ."""
    tokens: list[int] = []
    parents: list[int] = []
    for place in range(draw(st.integers(0, most))):
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


def draft_of(tree: Any, said: list[float], length: int, chain: bool = False) -> Draft:
    """One slot's draft, with the parents of a chain left out; what is past its end is rubbish."""
    tokens, parents = tree
    rest = range(len(parents) - 1, length - 1)
    return Draft(
        padded(tokens, length, jnp.int32),
        jnp.asarray([len(tokens)], jnp.int32),
        padded(said, length, jnp.float32),
        padded([1] * len(tokens), length, jnp.int32),
        None if chain else jnp.asarray([[*parents, *rest]], jnp.int32),
    )


@given(trees(GUESSES), trees(OTHERS), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_merged_tree_holds_the_likeliest_guesses_of_both(
    tree: Any, other: Any, chain: bool, data: st.DataObject
):
    if chain:
        other = other[0], list(range(-1, len(other[0]) - 1))
    ours = data.draw(likely(len(tree[0])))
    theirs = data.draw(likely(len(other[0])))
    draft, found = draft_of(tree, ours, GUESSES), draft_of(other, theirs, OTHERS, chain)
    result = jax.device_get(merged(draft, found, (draft.confidence, found.confidence), ROOM))

    factors = paths_of(*tree, ours)
    for path, factor in paths_of(*other, theirs).items():
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
