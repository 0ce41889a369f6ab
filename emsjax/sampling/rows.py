"""What choosing a token depends on: the row's own prefix, and its slot's settings."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

# Fills `Rows.path` where a row's prefix has no further draft token.
NO_TOKEN = -1


class Rows(NamedTuple):
    """The prefix that each row of logits [W, V] follows.

    Attributes:
      slots: int32[W], the row's slot, 0 to B - 1.
      positions: int32[W], position in its sample of the token that the logits follow.
      tokens: int32[W], that token.
      before: int32[W], the token before it; means nothing at position 0.
      path: int32[W, k], the draft tokens of the prefix in order, filled up with `NO_TOKEN`; the
        slot's known text does not hold them yet.
    """

    slots: jax.Array
    positions: jax.Array
    tokens: jax.Array
    before: jax.Array
    path: jax.Array


class Slots(Protocol):
    """What choosing reads of the state of all slots: a part of `engine.state.DecodeState`."""

    @property
    def live(self) -> jax.Array:
        """bool[B], which slots are being worked on."""

    @property
    def stop_ids(self) -> jax.Array:
        """int32[B, E], tokens that end each slot's text."""

    @property
    def sampling(self) -> Any:
        """`SamplingState`; None where every slot takes the likeliest token."""


def rows_after(tokens: jax.Array, lens: jax.Array, guesses: jax.Array, done: jax.Array) -> Rows:
    """One row a slot: the end of its known text and `done` draft tokens after it.

    Args:
      tokens: int32[B, S], known text.
      lens: int32[B], its length.
      guesses: int32[B, k], draft tokens.
      done: int32[], how many of them belong to the prefix, at most k.
    """
    slots = jnp.arange(lens.shape[0], dtype=jnp.int32)
    newest = tokens[slots, jnp.maximum(lens - 1, 0)]
    before = tokens[slots, jnp.maximum(lens - 2, 0)]
    text = jnp.concatenate([before[:, None], newest[:, None], guesses], axis=1)
    place = jnp.arange(guesses.shape[1], dtype=jnp.int32)[None]
    return Rows(
        slots=slots,
        positions=jnp.maximum(lens - 1 + done, 0),
        tokens=text[:, done + 1],
        before=text[:, done],
        path=jnp.where(place < done, guesses, NO_TOKEN),
    )
