"""Choosing among the frequent tokens, to which drafts trained for a target are limited."""

import jax
import jax.numpy as jnp

from emsjax.engine.state import DecodeState
from emsjax.sampling.choose import choose_unchecked
from emsjax.sampling.rows import Rows


def choose_frequent(
    logits: jax.Array, token_ids: jax.Array, rows: Rows, state: DecodeState, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token per slot as the target will, with the same noise.

    Args:
      logits: float32[B, Vd], of the frequent tokens.
      token_ids: int32[Vd], these tokens.
      rows: the prefix of each slot.
      state: the state of all slots.
      vocab_size: V of the target.

    Returns:
      The tokens int32[B], and their probability under the draft, float32[B].
    """
    if state.sampling is None:
        place = jnp.argmax(logits, axis=1)
        guess = token_ids[place]
    else:
        # Noise belongs to places in the vocabulary, so the logits are spread over all of the
        # target's.
        full = jnp.full((logits.shape[0], vocab_size), -jnp.inf, jnp.float32)
        full = full.at[:, token_ids].set(logits)
        guess = choose_unchecked(full, rows, state)
        place = jnp.argmax(token_ids[None] == guess[:, None], axis=1)
    given = jnp.take_along_axis(jax.nn.softmax(logits, axis=1), place[:, None], axis=1)[:, 0]
    return guess, given
