"""Merges two drafts of the same slots into one tree, so that all guesses compete for rows."""

import jax
import jax.numpy as jnp

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.tree import best_of, path_products, path_tokens, tree_of
from emsjax.sampling.rows import NO_TOKEN


def merge(draft: Draft, other: Draft, likely: tuple[jax.Array, jax.Array], length: int) -> Draft:
    """Returns a tree of the likeliest guesses of both drafts, which share what they have in common.

    Args:
      draft: chains or trees of n guesses for each slot, with confidence and source.
      other: chains or trees of m guesses for each slot, with confidence and source.
      likely: float32[B, n] and float32[B, m], the probability that a guess is right if those before
        it are.
      length: k of the merged draft.
    """
    draft, other = _as_tree(draft), _as_tree(other)
    count = draft.tokens.shape[1]
    there, others_there = _there(draft), _there(other)
    same = _same(draft, other) & there[:, None] & others_there[:, :, None]  # [B, m, n]
    shared, twin = same.any(axis=2), jnp.argmax(same, axis=2).astype(jnp.int32)

    def of_both(ours: jax.Array | None, theirs: jax.Array | None) -> jax.Array:
        """Joins probabilities. A guess that both drafts have gets the larger of its two."""
        assert ours is not None
        assert theirs is not None
        said = jnp.where(same, theirs[:, :, None], 0.0).max(axis=1)
        return jnp.concatenate([jnp.maximum(ours, said), theirs], axis=1)

    assert draft.source is not None
    assert other.source is not None
    assert draft.parents is not None
    assert other.parents is not None
    above = jnp.maximum(other.parents, 0)
    moved = jnp.where(_take(shared, above), _take(twin, above), count + above)
    both = Draft(
        tokens=jnp.concatenate([draft.tokens, other.tokens], axis=1),
        lens=draft.lens,
        confidence=of_both(draft.confidence, other.confidence),
        source=jnp.concatenate([draft.source, other.source], axis=1),
        parents=jnp.concatenate(
            [draft.parents, jnp.where(other.parents == ROOT, ROOT, moved)], axis=1
        ),
    )
    assert both.parents is not None
    survival = path_products(of_both(*likely), both.parents)
    kept = jnp.concatenate([there, others_there & ~shared], axis=1)
    return best_of(both, jnp.where(kept, survival, 0.0), length)


def _same(draft: Draft, other: Draft) -> jax.Array:
    """Returns which guesses of two trees have equal paths, bool[B, m, n]."""
    paths = []
    longest = max(draft.tokens.shape[1], other.tokens.shape[1])
    for each in (draft, other):
        tree = tree_of(each)
        assert tree is not None
        path = path_tokens(tree, each.tokens)[:, 1:]
        room = ((0, 0), (0, 0), (0, longest - path.shape[2]))
        paths.append(jnp.pad(path, room, constant_values=NO_TOKEN))
    ours, theirs = paths
    return (theirs[:, :, None] == ours[:, None]).all(axis=3)


def _as_tree(draft: Draft) -> Draft:
    if draft.parents is not None:
        return draft._replace(parents=jnp.where(_there(draft), draft.parents, ROOT))
    places = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return draft._replace(parents=jnp.broadcast_to(places - 1, draft.tokens.shape))


def _there(draft: Draft) -> jax.Array:
    places = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return places < draft.lens[:, None]


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, index, axis=1)
