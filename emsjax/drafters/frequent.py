"""Guessing among the frequent tokens, to which drafts trained for a target are limited."""

import jax
import jax.numpy as jnp

from emsjax.engine.state import DecodeState
from emsjax.sampling.guess import Guesses, guess, likeliest
from emsjax.sampling.rows import Rows
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


def guess_frequent(
    logits: jax.Array,
    token_ids: jax.Array | None,
    rows: Rows,
    state: DecodeState,
    vocab_size: int,
    count: int = 1,
    vocabulary: Vocabulary = WHOLE,
) -> Guesses:
    """Guesses the target's choice after each row, with the same noise.

    Args:
      logits: float32[W, Vd], of the frequent tokens.
      token_ids: int32[Vd], these tokens; None if they are the whole vocabulary.
      rows: the prefix of each row.
      state: the state of all slots.
      vocab_size: V of the target.
      count: how many tokens to guess for each row.
      vocabulary: which tokens the logits are of, if they may be of all.
    """
    if token_ids is None:
        return guess(logits, rows, state, count, vocabulary)
    if state.sampling is None:
        found = likeliest(logits, count)
        return found._replace(tokens=token_ids[found.tokens])
    # Noise belongs to places in the vocabulary, so the logits are spread over all of the target's.
    full = jnp.full((logits.shape[0], vocab_size), -jnp.inf, jnp.float32)
    return guess(full.at[:, token_ids].set(logits), rows, state, count)
