"""Packing the rows of all slots into one flat buffer, without padding between them.

A row is one token that the model computes. Slots have different numbers of rows, so a [B, q] batch
would pad all of them to the longest. Most of the model works on rows one by one and need not know
which slot a row belongs to. Only attention and the cache update do. They read it from the indices
of `PackedBatch`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.tree import Tree

# The parent of a row whose preceding token is already in the cache.
NO_PARENT = -1


class PackedBatch(NamedTuple):
    """The rows of one step, slot after slot: the input of the model's forward pass.

    Attributes:
      tokens: int32[T]; rows at or past `cu_q_lens[B]` are unused.
      positions: int32[T], position of each token in its sample. In a token tree, several rows may
        have the same.
      slot_ids: int32[T], slot of each row; B for an unused row.
      parents: int32[T], the row of the token before each one; `NO_PARENT` if that token's K/V is
        already in the cache, and for unused rows.
      cu_q_lens: int32[B+1], the cumulative number of rows: slot b has the rows from `cu_q_lens[b]`
        up to `cu_q_lens[b+1]`, possibly none.
      kv_lens: int32[B], tokens of each slot in the cache once this step's are written.
      ancestors: uint32[T] or None; bit j is set if the row attends to its slot's j-th row of this
        step (token trees). None if each slot's rows are a chain.
      tree_starts: int32[B], the place of the row that bit 0 stands for, if that is not each slot's
        first row of this step; else None.
      holes: bool[B, S] or None; positions of the cache before `kv_lens` that hold no token.
    """

    tokens: jax.Array
    positions: jax.Array
    slot_ids: jax.Array
    parents: jax.Array
    cu_q_lens: jax.Array
    kv_lens: jax.Array
    ancestors: jax.Array | None = None
    tree_starts: jax.Array | None = None
    holes: jax.Array | None = None


class Guesses(NamedTuple):
    """The draft tokens after the known text of each slot.

    Attributes:
      tokens: int32[B, k], valid token ids.
      start: int32[B], the position of each slot's first draft token.
      tree: how they follow each other; None if each slot's are a chain.
    """

    tokens: jax.Array
    start: jax.Array
    tree: Tree | None = None


def pack(
    tokens: jax.Array,
    starts: jax.Array,
    q_lens: jax.Array,
    capacity: int,
    guesses: Guesses | None = None,
) -> PackedBatch:
    """Packs `q_lens[b]` tokens of each slot, from position `starts[b]` on.

    Args:
      tokens: int32[B, S], the known text of each slot.
      starts: int32[B], position of each slot's first row.
      q_lens: int32[B], rows of each slot; their sum is at most `capacity`.
      capacity: T.
      guesses: the tokens of rows past the known text; None if there are no such rows.
    """
    num_slots = q_lens.shape[0]
    cu_q_lens = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(q_lens, dtype=jnp.int32)])
    rows = jnp.arange(capacity, dtype=jnp.int32)
    # Comparing every row with every bound is one small operation. A binary search would be a loop.
    found = jnp.searchsorted(cu_q_lens[1:], rows, side="right", method="compare_all")
    slot_ids = found.astype(jnp.int32)
    # Unused rows have the slot B. Here they read from the last slot, to stay in bounds.
    slot = jnp.minimum(slot_ids, num_slots - 1)
    place = rows - cu_q_lens[slot]
    used = slot_ids < num_slots
    positions = jnp.where(used, starts[slot] + place, 0)
    packed = tokens[slot, positions]
    batch = PackedBatch(
        tokens=packed,
        positions=positions,
        slot_ids=slot_ids,
        parents=jnp.where(used & (place > 0), rows - 1, NO_PARENT),
        cu_q_lens=cu_q_lens,
        kv_lens=starts + q_lens,
    )
    if guesses is None or not guesses.tokens.shape[1]:
        return batch
    guess = positions - guesses.start[slot]
    drafted = used & (guess >= 0)
    guess = jnp.clip(guess, 0, guesses.tokens.shape[1] - 1)
    batch = batch._replace(tokens=jnp.where(drafted, guesses.tokens[slot, guess], packed))
    return batch if guesses.tree is None else _in_tree(batch, guesses, slot, guess, drafted)


def _in_tree(
    batch: PackedBatch, guesses: Guesses, slot: jax.Array, guess: jax.Array, drafted: jax.Array
) -> PackedBatch:
    """Returns the batch with its guesses in a tree instead of a chain.

    Only slots with a single known row have guesses, so the tree's root is a slot's first row.

    Args:
      batch: the rows as chains.
      guesses: with a tree.
      slot: int32[T], the slot of each row, in bounds.
      guess: int32[T], which guess each row is, in bounds.
      drafted: bool[T], whether the row is a guess.
    """
    tree = guesses.tree
    assert tree is not None
    position = guesses.start[slot] + tree.depths[slot, guess + 1] - 1
    parent = batch.cu_q_lens[slot] + tree.parents[slot, guess + 1]
    # Known rows attend to all rows of their slot before them.
    paths = jnp.where(drafted, tree.paths[slot, guess + 1], ~jnp.uint32(0))
    return batch._replace(
        positions=jnp.where(drafted, position, batch.positions),
        parents=jnp.where(drafted, parent, batch.parents),
        ancestors=paths,
    )
