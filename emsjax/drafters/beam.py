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
      hidden: [B, W, D], the drafter's state at the end of each path.
      paths: int32[B, W, k], the guesses on each path.
      ends: int32[B, W], the index of each path's last guess; `ROOT` before the first.
      shares: float32[B, W], see `Guessed`; 0 for a path that does not exist.
      guessed: all guesses so far, N = W * C * k if each path grows by C guesses at a time.
    """

    done: jax.Array
    hidden: jax.Array
    paths: jax.Array
    ends: jax.Array
    shares: jax.Array
    guessed: Guessed


class Choice(NamedTuple):
    """One of the guesses that continue each path, [B, W] each, see `Draft`."""

    tokens: jax.Array
    confidence: jax.Array
    source: jax.Array


def shape_of(beam_rows: int, num_slots: int) -> tuple[int, int]:
    """Returns W and C of a beam with at most `beam_rows` paths in all slots, or one in each."""
    width = min(max(beam_rows // num_slots, 1), WIDEST)
    return width, min(width, CHOICES)


def start(hidden: jax.Array, length: int, width: int, choices: int) -> Beam:
    """Returns a beam with one empty path in every slot.

    Args:
      hidden: [B, D], the drafter's state before the first guess.
      length: k, the most guesses on a path.
      width: W.
      choices: C, guesses that continue a path.
    """
    num_slots, room = hidden.shape[0], width * choices * length
    wide = (num_slots, width)
    ints, floats = jnp.zeros((num_slots, room), jnp.int32), jnp.zeros((num_slots, room))
    first = jnp.arange(width, dtype=jnp.int32)[None] == 0
    return Beam(
        done=jnp.zeros((), jnp.int32),
        hidden=jnp.broadcast_to(hidden[:, None], (*wide, hidden.shape[1])),
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


def choices_of(found: Guesses, wide: tuple[int, ...]) -> list[Choice]:
    """Returns guesses [B * W, C] as C guesses that continue each path, `wide` being (B, W)."""
    return [
        Choice(
            found.tokens[:, place].reshape(wide),
            found.confidence[:, place].reshape(wide),
            jnp.full(wide, SIBLING_SOURCE if place else COSTLY_SOURCE, jnp.int32),
        )
        for place in range(found.tokens.shape[1])
    ]


def grow(beam: Beam, hidden: jax.Array, choices: list[Choice]) -> Beam:
    """Returns the beam with the choices added, and with the likeliest of them as its paths.

    Args:
      beam: the paths.
      hidden: [B, W, D], the drafter's state from which the choices were made.
      choices: C guesses that continue each path.
    """
    width, count = beam.shares.shape[1], len(choices)
    new = Choice(*(jnp.concatenate(part, axis=1) for part in zip(*choices, strict=True)))
    shares = jnp.tile(beam.shares, (1, count)) * new.confidence
    # A drafter that computes NaN has nothing to offer.
    shares = jnp.where(shares > 0, shares, 0.0)
    first = beam.done * width * count
    added = Guessed(*new, jnp.tile(beam.ends, (1, count)), shares)
    guessed = jax.tree.map(
        lambda old, more: jax.lax.dynamic_update_slice(old, more, (0, first)), beam.guessed, added
    )
    shares, picked = jax.lax.top_k(shares, width)
    parent = picked % width

    def pick(values: Any, index: jax.Array) -> jax.Array:
        return jax.vmap(lambda of_slot, i: of_slot[i])(values, index)

    return Beam(
        done=beam.done + 1,
        hidden=pick(hidden, parent),
        paths=pick(beam.paths, parent).at[:, :, beam.done].set(pick(new.tokens, picked)),
        ends=first + picked.astype(jnp.int32),
        shares=shares,
        guessed=guessed,
    )


def draft_of(beam: Beam, ready: jax.Array, length: int) -> Draft:
    """Returns the likeliest guesses of each slot, a chain if the beam has one path.

    Args:
      beam: the paths.
      ready: bool[B], which slots get a draft.
      length: k, the most guesses of a slot.
    """
    found = beam.guessed
    lens = jnp.where(ready, beam.done, 0)
    if beam.shares.shape[1] == 1:
        return Draft(found.tokens, lens, found.confidence, found.source)
    draft = Draft(found.tokens, lens, found.confidence, found.source, found.parents)
    return best_of(draft, jnp.where(ready[:, None], found.shares, 0.0), length)
