"""Beam search for drafts: the likeliest open paths of each slot grow by one guess at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.draft import ROOT, Draft
from emsjax.engine.drafter import COSTLY_SOURCE, SIBLING_SOURCE
from emsjax.engine.state import DecodeState
from emsjax.engine.tree import best_of
from emsjax.sampling.guess import Guesses
from emsjax.sampling.rows import Rows, rows_after

# The most paths of a slot, and the most guesses that continue a path.
WIDEST, CHOICES = 4, 3


class Guessed(NamedTuple):
    """The guesses so far, as `Draft` has them, with the share of each in all continuations.

    Attributes:
      tokens: int32[B, N].
      confidence: float32[B, N].
      source: int32[B, N].
      parents: int32[B, N].
      shares: float32[B, N], the product of the confidences on each guess's path; 0 for no guess.
    """

    tokens: jax.Array
    confidence: jax.Array
    source: jax.Array
    parents: jax.Array
    shares: jax.Array


class Beam(NamedTuple):
    """The open paths of B slots, W each.

    Attributes:
      done: int32[], the number of guesses on each path.
      ends_state: [B, W, ...], the drafter's state at the end of each path, a pytree.
      paths: int32[B, W, k], the guesses on each path.
      ends: int32[B, W], the index of each path's last guess; `ROOT` before the first.
      shares: float32[B, W], see `Guessed`; 0 for a path that does not exist.
      guessed: all guesses so far, N = W * C * k if each path grows by C guesses at a time.
    """

    done: jax.Array
    ends_state: Any
    paths: jax.Array
    ends: jax.Array
    shares: jax.Array
    guessed: Guessed


def width_of(rows: int, num_slots: int) -> int:
    """Returns W, the paths of each slot if a pass has this many rows at most; 1 for chains."""
    return min(max(rows // num_slots, 1), WIDEST)


def choices_of(width: int) -> int:
    """Returns C, how many guesses continue a path."""
    return min(width, CHOICES)


def start(begin: Any, num_slots: int, length: int, width: int) -> Beam:
    """Returns a beam with one empty path in every slot.

    Args:
      begin: [B, ...], the drafter's state before the first guess, a pytree.
      num_slots: B.
      length: k, the most guesses on a path.
      width: W.
    """
    room = width * choices_of(width) * length
    wide = (num_slots, width)
    ints, floats = jnp.zeros((num_slots, room), jnp.int32), jnp.zeros((num_slots, room))
    first = jnp.arange(width, dtype=jnp.int32)[None] == 0
    return Beam(
        done=jnp.zeros((), jnp.int32),
        ends_state=jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (*wide, *x.shape[1:])), begin
        ),
        paths=jnp.zeros((*wide, length), jnp.int32),
        ends=jnp.full(wide, ROOT, jnp.int32),
        shares=jnp.broadcast_to(first, wide).astype(jnp.float32),
        guessed=Guessed(ints, floats, ints, ints, floats),
    )


def prefixes(beam: Beam, state: DecodeState) -> Rows:
    """Returns the prefix of each path, [B * W]."""
    after = jax.vmap(rows_after, in_axes=(None, None, 1, None), out_axes=1)
    rows = after(state.tokens, state.lens, beam.paths, beam.done)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def grow(beam: Beam, states: Any, found: Guesses) -> Beam:
    """Returns the beam with guesses added, and with the likeliest of them as its paths.

    Args:
      beam: the paths.
      states: [B, W, ...], the drafter's state from which they were guessed.
      found: [B * W, C], the guesses that continue each path, likeliest first.
    """
    num_slots, width = beam.shares.shape
    count = found.tokens.shape[1]

    def by_rank(x: jax.Array) -> jax.Array:
        """Turns [B * W, C] into [B, C * W]."""
        return x.reshape(num_slots, width, count).swapaxes(1, 2).reshape(num_slots, -1)

    tokens, confidence = by_rank(found.tokens), by_rank(found.confidence)
    first_choice = jnp.arange(count * width)[None] < width
    source = jnp.where(first_choice, COSTLY_SOURCE, SIBLING_SOURCE).astype(jnp.int32)
    source = jnp.broadcast_to(source, tokens.shape)
    shares = jnp.tile(beam.shares, (1, count)) * confidence
    # A drafter that computes NaN has nothing to offer.
    shares = jnp.where(shares > 0, shares, 0.0)
    first = beam.done * width * count
    added = Guessed(tokens, confidence, source, jnp.tile(beam.ends, (1, count)), shares)
    guessed = jax.tree.map(
        lambda old, more: jax.lax.dynamic_update_slice(old, more, (0, first)), beam.guessed, added
    )
    shares, picked = jax.lax.top_k(shares, width)
    parent = picked % width

    def pick(values: Any, index: jax.Array) -> jax.Array:
        return jax.vmap(lambda of_slot, i: of_slot[i])(values, index)

    return Beam(
        done=beam.done + 1,
        ends_state=jax.tree.map(lambda x: pick(x, parent), states),
        paths=pick(beam.paths, parent).at[:, :, beam.done].set(pick(tokens, picked)),
        ends=first + picked.astype(jnp.int32),
        shares=shares,
        guessed=guessed,
    )


def draft_of(beam: Beam, depths: jax.Array, length: int) -> Draft:
    """Returns the likeliest guesses of each slot, a chain if the beam has one path.

    Args:
      beam: the paths.
      depths: int32[B], how many guesses of a slot's paths count; 0 for no draft.
      length: k, the most guesses of a slot.
    """
    found, width = beam.guessed, beam.shares.shape[1]
    lens = jnp.minimum(depths, beam.done)
    if width == 1:
        more = ((0, 0), (0, length - found.tokens.shape[1]))
        tokens, confidence, source = found.tokens, found.confidence, found.source
        return Draft(jnp.pad(tokens, more), lens, jnp.pad(confidence, more), jnp.pad(source, more))
    draft = Draft(found.tokens, lens, found.confidence, found.source, found.parents)
    depth = jnp.arange(found.tokens.shape[1], dtype=jnp.int32) // (width * choices_of(width))
    return best_of(draft, jnp.where(depth[None] < depths[:, None], found.shares, 0.0), length)
