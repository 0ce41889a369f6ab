"""Merges a chain into another draft of the same slots, so that both compete for rows."""

import jax
import jax.numpy as jnp

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.tree import best_of, path_products, tree_of
from emsjax.engine.verify import verify
from emsjax.sampling.rows import NO_TOKEN


def merge(draft: Draft, chain: Draft, likely: tuple[jax.Array, jax.Array], length: int) -> Draft:
    """Returns a tree of the likeliest guesses of both drafts, which share what they have in common.

    Args:
      draft: a chain or a tree of n guesses for each slot, with confidence and source.
      chain: a chain of m guesses for each slot, with confidence and source.
      likely: float32[B, n] and float32[B, m], the probability that a guess is right if those before
        it are.
      length: k of the merged draft.
    """
    here = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    there = jnp.arange(chain.tokens.shape[1], dtype=jnp.int32)[None]
    parents = draft.parents
    if parents is None:
        parents = jnp.broadcast_to(here - 1, draft.tokens.shape)
        draft = draft._replace(parents=parents)
    tree = tree_of(draft)
    assert tree is not None
    # The guesses that the chain repeats are those that the chain, taken for the text, would accept.
    text = jnp.where(there < chain.lens[:, None], chain.tokens, NO_TOKEN)
    deeper = jnp.minimum(tree.depths, text.shape[1])
    text = jnp.pad(text, ((0, 0), (0, 1)), constant_values=NO_TOKEN)
    verdict = verify(draft.tokens, draft.lens, jnp.take_along_axis(text, deeper, axis=1), tree)
    assert verdict.path is not None
    shared = verdict.accepted[:, None]
    last = jnp.take_along_axis(verdict.path, shared, axis=1) - 1  # the last guess they share

    def of_both(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        """Joins probabilities. A guess that both drafts have gets the larger of its two."""
        index = jnp.minimum(tree.depths[:, 1:] - 1, theirs.shape[1] - 1)
        other = jnp.take_along_axis(theirs, index, axis=1)
        best = jnp.where(verdict.right, jnp.maximum(ours, other), ours)
        return jnp.concatenate([best, theirs], axis=1)

    added = (there >= shared) & (there < chain.lens[:, None])
    factors = of_both(*likely)
    ours = path_products(factors[:, : here.size], parents)
    ours = jnp.where(here < draft.lens[:, None], ours, 0.0)
    begun = jnp.where(last == ROOT, 1.0, jnp.take_along_axis(ours, jnp.maximum(last, 0), axis=1))
    theirs = begun * jnp.cumprod(jnp.where(added, likely[1], 1.0), axis=1)
    survival = jnp.concatenate([ours, jnp.where(added, theirs, 0.0)], axis=1)
    above = jnp.where(there == shared, last, here.size + there - 1)
    assert draft.confidence is not None
    assert chain.confidence is not None
    assert draft.source is not None
    assert chain.source is not None
    both = Draft(
        tokens=jnp.concatenate([draft.tokens, chain.tokens], axis=1),
        lens=draft.lens,
        confidence=of_both(draft.confidence, chain.confidence),
        source=jnp.concatenate([draft.source, chain.source], axis=1),
        parents=jnp.concatenate([parents, above], axis=1),
    )
    return best_of(both, survival, length)
