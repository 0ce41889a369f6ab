"""Guesses of a tree in another order keep what each of them follows."""

import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.tree import best_of, sort_by

SLOTS, GUESSES = 4, 9


def paths_of(draft: Draft, slot: int, count: int) -> list[tuple[int, ...]]:
    """Returns the tokens from the root to each of the first guesses."""
    assert draft.parents is not None
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(
        draft.tokens[slot, :count].tolist(), draft.parents[slot, :count].tolist(), strict=True
    ):
        assert parent < len(paths), "a guess comes after the one that it follows"
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    return paths


def grown(seed: int) -> tuple[Draft, np.ndarray]:
    """Returns random trees of different tokens, and survival, which falls along each path."""
    rng = np.random.default_rng(seed)
    parents = np.stack([rng.integers(ROOT, np.arange(GUESSES)) for _ in range(SLOTS)])
    survival = rng.choice([0.25, 0.5, 1.0], (SLOTS, GUESSES)).astype(np.float32)  # some are equal
    for slot in range(SLOTS):
        for guess, parent in enumerate(parents[slot]):
            survival[slot, guess] *= 1 if parent == ROOT else survival[slot, parent]
    tokens = 100 + rng.permuted(np.tile(np.arange(GUESSES), (SLOTS, 1)), axis=1)
    lens = jnp.full(SLOTS, GUESSES, jnp.int32)
    draft = Draft(jnp.asarray(tokens, jnp.int32), lens, parents=jnp.asarray(parents, jnp.int32))
    return draft, survival


@pytest.mark.parametrize("seed", range(8))
def test_sorted_guesses_follow_what_they_followed(seed: int):
    draft, survival = grown(seed)
    moved, likely = sort_by(jnp.asarray(survival), draft, jnp.asarray(survival))
    np.testing.assert_array_equal(likely, -np.sort(-survival, axis=1))
    for slot in range(SLOTS):
        before = dict(zip(paths_of(draft, slot, GUESSES), survival[slot].tolist(), strict=True))
        after = dict(zip(paths_of(moved, slot, GUESSES), likely[slot].tolist(), strict=True))
        assert after == before


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [1, 4])
def test_the_best_guesses_are_a_part_of_the_tree(seed: int, length: int):
    draft, survival = grown(seed)
    survival[0, 2:] = 0  # no guesses
    best = best_of(draft, jnp.asarray(survival), length)
    assert best.lens.tolist() == [min(length, 2), *[length] * (SLOTS - 1)]
    for slot, count in enumerate(best.lens.tolist()):
        before = dict(zip(paths_of(draft, slot, GUESSES), survival[slot].tolist(), strict=True))
        kept = [before[path] for path in paths_of(best, slot, count)]
        assert kept == sorted(before.values(), reverse=True)[:count]
