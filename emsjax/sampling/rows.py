"""The inputs of choosing a token: the row's prefix, and the settings of its slot."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

# No token: pads `Rows.path` after the last draft token of a row's prefix, and takes the place of a
# token that could not be chosen.
NO_TOKEN = -1


class Rows(NamedTuple):
    """The prefix that each row of logits [W, V] follows.

    Attributes:
      slots: int32[W], the row's slot, 0 to B - 1.
      positions: int32[W], position in its sample of the token that the logits follow.
      tokens: int32[W], that token.
      before: int32[W], the token before it; meaningless at position 0.
      path: int32[W, k], the draft tokens of the prefix in order, padded with `NO_TOKEN`. The slot's
        known text does not contain them yet.
    """

    slots: jax.Array
    positions: jax.Array
    tokens: jax.Array
    before: jax.Array
    path: jax.Array


class Slots(Protocol):
    """The part of `engine.state.DecodeState` that choosing reads."""

    @property
    def live(self) -> jax.Array:
        """bool[B], which slots hold an unfinished request."""

    @property
    def tokens(self) -> jax.Array:
        """int32[B, S], the known text."""

    @property
    def lens(self) -> jax.Array:
        """int32[B], the length of the known text."""

    @property
    def stop_ids(self) -> jax.Array:
        """int32[B, E], tokens that end each slot's text, padded with -1."""

    @property
    def sampling(self) -> Any | None:
        """How each slot's tokens are chosen; None if every slot takes the likeliest token."""


def rows_after(tokens: jax.Array, lens: jax.Array, guesses: jax.Array, done: jax.Array) -> Rows:
    """Returns one row per slot: the prefix of its known text and `done` draft tokens after it.

    Args:
      tokens: int32[B, S], the known text.
      lens: int32[B], the length of the known text.
      guesses: int32[B, k], the draft tokens.
      done: int32[], number of draft tokens in the prefix, at most k.
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


def whole_texts(rows: Rows, state: Slots) -> jax.Array:
    """Returns the prefix of each row, int32[W, S]; places after the row have no meaning."""
    place = jnp.arange(rows.path.shape[1], dtype=jnp.int32)[None]
    columns = state.lens[rows.slots][:, None] + place
    numbers = jnp.arange(rows.slots.shape[0], dtype=jnp.int32)[:, None]
    return state.tokens[rows.slots].at[numbers, columns].set(rows.path, mode="drop")


def tokens_before(rows: Rows, state: Slots, count: int) -> jax.Array:
    """Returns the last tokens of each row's prefix, the newest first.

    The result is int32[W, count], with `NO_TOKEN` before the beginning of the text.
    """
    places = rows.positions[:, None] - jnp.arange(count, dtype=jnp.int32)[None]
    depth = places - state.lens[rows.slots][:, None]
    known = state.tokens[rows.slots[:, None], jnp.maximum(places, 0)]
    # One more column, because a drafter that drafts nothing has a path of none.
    path = jnp.pad(rows.path, ((0, 0), (0, 1)), constant_values=NO_TOKEN)
    drafted = jnp.take_along_axis(path, jnp.clip(depth, 0, path.shape[1] - 1), axis=1)
    return jnp.where(places < 0, NO_TOKEN, jnp.where(depth >= 0, drafted, known))
