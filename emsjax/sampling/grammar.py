"""Grammars on the device: which tokens may follow, by tables of automata over bytes.

A grammar is an automaton whose states are rows of the tables. A token leads from row to row by its
bytes. Its row says which tokens may come next, so a draft's rows need no visit to the host: each
follows its own path of draft tokens. Rows of several grammars lie one after another in one table of
fixed size. Most states of a large grammar allow the same tokens as others, such as those within a
long string, so the sets of tokens have a table of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.sampling.vocabulary import WHOLE, Vocabulary

# The row of a slot without a grammar, and of a text that its grammar does not allow.
NO_ROW = -1
# Tokens in a word of `Tables.allowed`.
WORD_BITS = 32


class Tables(NamedTuple):
    """The rows of all grammars, P of them, their sets of tokens, and the bytes of the vocabulary.

    Attributes:
      allowed: uint32[A, V / 32 rounded up], a bit for each token of a set: token t is bit t % 32 of
        word t // 32. Tokens without text, such as the end of text, have none.
      sets: int32[P], the set of the tokens that may come next.
      following: int32[P, 256], the row after each byte; `NO_ROW` if the byte is not allowed.
      final: bool[P], whether the text may end here.
      closed: bool[P], whether it must, because no token may come next.
      guess: int32[P], the longest token of the text that must come next, apart from an optional
        space; `NO_TOKEN` if there is a choice.
      starts: int32[V+1], where the bytes of each token begin.
      bytes: uint8[N], the bytes of all tokens.
    """

    allowed: jax.Array
    sets: jax.Array
    following: jax.Array
    final: jax.Array
    closed: jax.Array
    guess: jax.Array
    starts: jax.Array
    bytes: jax.Array


class Grammars(NamedTuple):
    """The grammars of all slots.

    Attributes:
      tables: of all grammars.
      rows: int32[B], the row after each slot's known text; `NO_ROW` without a grammar.
    """

    tables: Tables
    rows: jax.Array


def after_token(tables: Tables, rows: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the rows after one more token, int32[n]; `NO_TOKEN` changes nothing.

    Args:
      tables: of all grammars.
      rows: int32[n], the rows before it.
      tokens: int32[n]; a token outside the vocabulary is not allowed.
    """
    size = tables.starts.shape[0] - 1
    known = jnp.clip(tokens, 0, size - 1)
    first = tables.starts[known]
    count = jnp.where((rows >= 0) & (tokens >= 0), tables.starts[known + 1] - first, 0)

    def read(done: jax.Array, now: jax.Array) -> jax.Array:
        byte = tables.bytes[jnp.minimum(first + done, tables.bytes.shape[0] - 1)]
        following = tables.following[jnp.maximum(now, 0), byte.astype(jnp.int32)]
        return jnp.where((done < count) & (now >= 0), following, now)

    read_all = jax.lax.fori_loop(jnp.int32(0), count.max(initial=0), read, rows)
    return jnp.where(tokens >= size, NO_ROW, read_all)


def after_path(tables: Tables, rows: jax.Array, path: jax.Array) -> jax.Array:
    """Returns the rows after several tokens, int32[n].

    Args:
      tables: of all grammars.
      rows: int32[n], the rows before them.
      path: int32[n, k], the tokens in order, padded with `NO_TOKEN`.
    """
    if not path.shape[1]:
        return rows
    there = (path != NO_TOKEN) & (rows >= 0)[:, None]
    longest = there.sum(axis=1, dtype=jnp.int32).max(initial=0)

    def follow(place: jax.Array, now: jax.Array) -> jax.Array:
        return after_token(tables, now, path[:, place])

    return jax.lax.fori_loop(jnp.int32(0), longest, follow, rows)


def rows_of(grammars: Grammars, rows: Rows) -> jax.Array:
    """Returns the grammar's row after each prefix, int32[W]."""
    return after_path(grammars.tables, grammars.rows[rows.slots], rows.path)


def must_end(grammars: Grammars, at: jax.Array) -> jax.Array:
    """Returns whether nothing but the end may follow at these rows int32[n], bool[n]."""
    return (at >= 0) & grammars.tables.closed[jnp.maximum(at, 0)]


def keep_grammar(
    logits: jax.Array,
    rows: Rows,
    at: jax.Array,
    grammars: Grammars,
    state: Slots,
    vocabulary: Vocabulary = WHOLE,
) -> jax.Array:
    """Sets all tokens that a slot's grammar does not allow to -inf; float32[W, V].

    Stop tokens may come where the text may end, and only there, even those with a text that may
    come elsewhere: it would be the last. A prefix that is not allowed itself is left as it is: it
    contains a draft token that will not be accepted.

    Args:
      logits: float32[W, V], or this device's part of them, which is of whole words of tokens.
      rows: the prefixes that the logits follow.
      at: int32[W], see `rows_of`.
      grammars: of all slots.
      state: the state of all slots.
      vocabulary: which tokens the logits are of.
    """
    tables, width = grammars.tables, logits.shape[1]
    place = jnp.maximum(at, 0)
    bits = jnp.arange(WORD_BITS, dtype=jnp.uint32)[None, None]
    words = vocabulary.own(tables.allowed[tables.sets[place]], width // WORD_BITS)
    allowed = (words[:, :, None] >> bits) & 1 == 1
    allowed = allowed.reshape(at.shape[0], -1)[:, :width]
    stop_ids = state.stop_ids[rows.slots]
    columns = jnp.where(stop_ids >= 0, vocabulary.places(stop_ids, width), width)
    numbers = jnp.arange(at.shape[0], dtype=jnp.int32)[:, None]
    allowed = allowed.at[numbers, columns].set(tables.final[place][:, None], mode="drop")
    # Subtracted, not set: a NaN stays one, so that `choose` sees it.
    return jnp.where(allowed | (at < 0)[:, None], logits, logits - jnp.inf)


def advance(grammars: Grammars, tokens: jax.Array, emitted: jax.Array) -> Grammars:
    """Returns the grammars after the first `emitted[b]` of tokens int32[B, n]."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    path = jnp.where(place < emitted[:, None], tokens, NO_TOKEN)
    return grammars._replace(rows=after_path(grammars.tables, grammars.rows, path))


def forced(grammars: Grammars, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of the text that must follow each slot's known text.

    The same text may have other tokens, so these are guesses.

    Args:
      grammars: of all slots.
      length: k, the most tokens.

    Returns:
      The tokens int32[B, k], and how many they are, int32[B].
    """
    rows = grammars.rows
    tokens = jnp.full((rows.shape[0], length), NO_TOKEN, jnp.int32)

    def guess(place: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tokens, rows = now
        found = jnp.where(rows >= 0, grammars.tables.guess[jnp.maximum(rows, 0)], NO_TOKEN)
        after = after_token(grammars.tables, rows, found)
        # Without a guess there is none after it either.
        rows = jnp.where(found == NO_TOKEN, NO_ROW, after)
        return tokens.at[:, place].set(found), rows

    tokens, _ = jax.lax.fori_loop(0, length, guess, (tokens, rows))
    return tokens, (tokens != NO_TOKEN).sum(axis=1, dtype=jnp.int32)


def allowed_length(grammars: Grammars, tokens: jax.Array) -> jax.Array:
    """Returns how many of the first tokens int32[B, k] each slot's grammar allows, int32[B]."""

    def follow(place: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, count = now
        after = after_token(grammars.tables, rows, tokens[:, place])
        good = (after >= 0) | (grammars.rows < 0)
        return after, count + (good & (count == place)).astype(jnp.int32)

    start = (grammars.rows, jnp.zeros_like(grammars.rows))
    return jax.lax.fori_loop(0, tokens.shape[1], follow, start)[1]
