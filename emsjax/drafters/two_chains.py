"""Merges two drafts of every slot into a tree."""

import jax
import jax.numpy as jnp

from emsjax.engine.draft import Draft
from emsjax.engine.tree import path_products, sort_by


def merge_chains(
    one: Draft, other: Draft, likely: tuple[jax.Array, jax.Array], length: int
) -> Draft:
    """Returns a tree of the likeliest guesses of two chains, which share their common prefix.

    Args:
      one: a chain for each slot, with confidence and source.
      other: another one.
      likely: float32[B, k] for each, the probability that a guess is right if those before it are.
      length: k of the tree.
    """
    width, most = one.tokens.shape[1], min(one.tokens.shape[1], other.tokens.shape[1])
    here = jnp.arange(width, dtype=jnp.int32)[None]
    there = jnp.arange(other.tokens.shape[1], dtype=jnp.int32)[None]
    both = here[:, :most] < jnp.minimum(one.lens, other.lens)[:, None]
    equal = both & (one.tokens[:, :most] == other.tokens[:, :most])
    shared = jnp.cumprod(equal, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)[:, None]

    def joined(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.concatenate([first, second], axis=1)

    def joined_shares(first: jax.Array, second: jax.Array) -> jax.Array:
        """Joins probabilities; a shared guess has the larger of its two."""
        more = jnp.pad(second[:, :most], ((0, 0), (0, width - most)))
        return joined(jnp.where(here < shared, jnp.maximum(first, more), first), second)

    assert one.confidence is not None
    assert other.confidence is not None
    assert one.source is not None
    assert other.source is not None
    parents = joined(
        jnp.broadcast_to(here - 1, one.tokens.shape),
        jnp.where(there == shared, shared - 1, width + there - 1),
    )
    used = joined(here < one.lens[:, None], (there < other.lens[:, None]) & (there >= shared))
    likely_of_all = joined_shares(*likely)
    survival = jnp.where(used, path_products(likely_of_all, parents), 0.0)
    lens = jnp.minimum(used.sum(axis=1, dtype=jnp.int32), length)
    merged = Draft(
        joined(one.tokens, other.tokens),
        lens,
        joined_shares(one.confidence, other.confidence),
        joined(one.source, other.source),
        parents,
    )
    merged, _ = sort_by(survival, merged, likely_of_all)
    assert merged.confidence is not None
    assert merged.source is not None
    assert merged.parents is not None
    cut = (x[:, :length] for x in (merged.tokens, merged.confidence, merged.source))
    tokens, confidence, source = cut
    return Draft(tokens, lens, confidence, source, merged.parents[:, :length])
