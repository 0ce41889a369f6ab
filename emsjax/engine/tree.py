"""Token trees: several guesses for the same place, of which at most one is right.

A slot's rows in a step are its newest known token, which is row 0 and the root of the tree, then
its guesses in order: guess j is row j + 1. A row's path leads from the root to the row, both
included. A row's position in the text follows from the length of its path. Its place in the cache
follows from its index, until the accepted path is moved together, see `accepted_path`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.draft import ROOT, Draft
from emsjax.sampling.rows import NO_TOKEN

# The most guesses in a tree. With the root, each row has a bit in 32.
MOST_GUESSES = 31


class Tree(NamedTuple):
    """The tree of each slot's guesses.

    Attributes:
      parents: int32[B, k+1], the row that each row follows; the root follows itself.
      paths: uint32[B, k+1], bit r of a row is set if row r is on its path.
      depths: int32[B, k+1], how many guesses are on each row's path.
    """

    parents: jax.Array
    paths: jax.Array
    depths: jax.Array


def tree_of(draft: Draft) -> Tree | None:
    """Returns the tree of a draft; None if the draft is a chain."""
    if draft.parents is None:
        return None
    if draft.parents.shape[1] > MOST_GUESSES:
        raise ValueError(f"a tree of {draft.parents.shape[1]} guesses: at most {MOST_GUESSES} fit")
    parents = _parent_rows(draft.parents)
    paths = jnp.uint32(1) << jnp.arange(parents.shape[1], dtype=jnp.uint32)
    paths = jnp.broadcast_to(paths, parents.shape)
    above = parents
    for _ in range(_doublings(parents)):
        paths |= _take(paths, above)
        above = _take(above, above)
    depths = jax.lax.population_count(paths).astype(jnp.int32) - 1
    return Tree(parents, paths, depths)


def path_products(factors: jax.Array, parents: jax.Array) -> jax.Array:
    """Returns the product of the factors float32[B, k] of all guesses on each guess's path."""
    above = _parent_rows(parents)
    products = jnp.pad(factors, ((0, 0), (1, 0)), constant_values=1.0)
    for _ in range(_doublings(above)):
        products *= _take(products, above)
        above = _take(above, above)
    return products[:, 1:]


def path_tokens(tree: Tree, tokens: jax.Array) -> jax.Array:
    """Returns the guesses on each row's path in order, int32[B, k+1, k], padded with `NO_TOKEN`.

    Args:
      tree: of the guesses.
      tokens: int32[B, k], the guesses.
    """
    rows = jnp.arange(1, tree.paths.shape[1], dtype=jnp.uint32)[None, None]
    on_path = (tree.paths[:, :, None] >> rows) & 1 == 1
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, None, None]
    at_place = tree.depths[:, None, 1:, None] - 1 == place
    # At most one guess of a path is at each place.
    there = on_path[..., None] & at_place
    return jnp.where(there, tokens[:, None, :, None], 0).sum(axis=2, dtype=jnp.int32) + jnp.where(
        there.any(axis=2), 0, NO_TOKEN
    )


def sort_by(survival: jax.Array, draft: Draft, likely: jax.Array) -> tuple[Draft, jax.Array]:
    """Sorts a tree's guesses by survival, so that any number of the first ones are a tree.

    Args:
      survival: float32[B, k], the probability that each guess and all before it are accepted; 0
        past the end of a draft. It never rises from a guess to those that follow it.
      draft: the guesses.
      likely: float32[B, k], sorted alongside.
    """
    if draft.parents is None:
        return draft, likely
    order = _falling(survival)
    return _in_order(draft, order), _take(likely, order)


def best_of(draft: Draft, survival: jax.Array, length: int) -> Draft:
    """Returns the likeliest guesses of each slot, best first.

    Args:
      draft: n guesses for each slot, with `parents`.
      survival: float32[B, n], as for `sort_by`; 0 for entries that are no guess.
      length: k, how many guesses the result has room for.
    """
    best = _in_order(draft, _falling(survival)[:, :length])
    lens = (survival > 0).sum(axis=1, dtype=jnp.int32)
    return best._replace(lens=jnp.minimum(lens, length))


def _falling(survival: jax.Array) -> jax.Array:
    """Returns the order of falling survival, int32[B, n].

    It is stable, so that a guess stays before those that follow it with equal survival.
    """
    return jnp.argsort(-survival, axis=1, stable=True).astype(jnp.int32)


def _in_order(draft: Draft, order: jax.Array) -> Draft:
    """Returns the guesses order int32[B, k] of n; a guess's parent must come before it."""
    assert draft.parents is not None
    places = jnp.arange(order.shape[1], dtype=jnp.int32)[None]
    slots = jnp.arange(order.shape[0], dtype=jnp.int32)[:, None]
    rank = jnp.zeros(draft.parents.shape, jnp.int32).at[slots, order].set(places)
    parents = _take(draft.parents, order)
    moved = jnp.where(parents == ROOT, ROOT, _take(rank, jnp.maximum(parents, 0)))
    return draft._replace(
        tokens=_take(draft.tokens, order),
        confidence=None if draft.confidence is None else _take(draft.confidence, order),
        source=None if draft.source is None else _take(draft.source, order),
        parents=moved,
    )


def _parent_rows(parents: jax.Array) -> jax.Array:
    """Returns `Tree.parents` of guesses with these parents, int32[B, k]."""
    return jnp.pad(parents + 1, ((0, 0), (1, 0)))


def _doublings(rows: jax.Array) -> int:
    """Returns how often steps along paths must be doubled to reach from any row to the root."""
    return (rows.shape[1] - 1).bit_length()


def _take(values: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, rows, axis=1)
