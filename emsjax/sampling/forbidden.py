"""Tokens that the row's own text forbids: repeated n-grams, and the last tokens of bad words.

The rules are those of `transformers` (`NoRepeatNGramLogitsProcessor`, `NoBadWordsLogitsProcessor`).
The text is the whole prefix of a row: prompt, output and draft tokens.
"""

import jax
import jax.numpy as jnp

from emsjax.sampling.rows import NO_TOKEN, Rows, Slots, tokens_before, whole_texts
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


def forbid_repeats(
    logits: jax.Array,
    rows: Rows,
    sizes: jax.Array,
    state: Slots,
    vocabulary: Vocabulary = WHOLE,
) -> jax.Array:
    """Sets tokens to -inf that would complete an n-gram which the text already has; [W, V].

    This compares [W, S] tokens n - 1 times.

    Args:
      logits: float32[W, V].
      rows: the prefixes that the logits follow.
      sizes: int32[W], the n of each row; 0 forbids nothing.
      state: the state of all slots.
      vocabulary: which tokens the logits are of.
    """
    texts = whole_texts(rows, state)
    last = rows.positions[:, None]
    place = jnp.arange(texts.shape[1], dtype=jnp.int32)[None]
    n = sizes[:, None]

    # The n-gram that ends at `place` is repeated if its first n - 1 tokens are the text's newest.
    def compare(back: jax.Array, repeated: jax.Array) -> jax.Array:
        newest = jnp.take_along_axis(texts, jnp.maximum(last + 1 - back, 0), axis=1)
        there = jnp.roll(texts, back, axis=1)  # What wraps around is before the first n-gram.
        return repeated & ((there == newest) | (back >= n))

    candidates = (n > 0) & (place >= n - 1) & (place <= last)
    longest = jnp.minimum(sizes.max(), texts.shape[1])
    repeated = jax.lax.fori_loop(1, longest, compare, candidates)
    return forbid(logits, texts, repeated, vocabulary)


def forbid_words(
    logits: jax.Array,
    rows: Rows,
    words: jax.Array,
    state: Slots,
    vocabulary: Vocabulary = WHOLE,
) -> jax.Array:
    """Sets tokens to -inf that would complete one of the slot's words; float32[W, V].

    Args:
      logits: float32[W, V].
      rows: the prefixes that the logits follow.
      words: int32[B, N, L], see `SamplingState`.
      state: the state of all slots.
      vocabulary: which tokens the logits are of.
    """
    own = words[rows.slots]
    before = tokens_before(rows, state, words.shape[2] - 1)[:, None]
    begun = ((own[:, :, 1:] == before) | (own[:, :, 1:] == NO_TOKEN)).all(axis=2)
    return forbid(logits, own[:, :, 0], begun & (own[:, :, 0] != NO_TOKEN), vocabulary)


def forbid(
    logits: jax.Array, tokens: jax.Array, which: jax.Array, vocabulary: Vocabulary = WHOLE
) -> jax.Array:
    """Sets those of tokens int32[W, n] to -inf for which `which` bool[W, n] is true."""
    width = logits.shape[1]
    columns = jnp.where(which, vocabulary.places(tokens, width), width)
    numbers = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    # Added, not set: a NaN stays one, so that `choose` sees it.
    return logits.at[numbers, columns].add(-jnp.inf, mode="drop")
