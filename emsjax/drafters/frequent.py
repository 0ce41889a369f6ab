"""Choosing among the frequent tokens, to which drafts trained for a target are limited."""

import jax
import jax.numpy as jnp

from emsjax.engine.state import DecodeState
from emsjax.sampling.choose import choose_unchecked
from emsjax.sampling.rows import Rows


def choose_frequent(
    logits: jax.Array,
    token_ids: jax.Array | None,
    rows: Rows,
    state: DecodeState,
    vocab_size: int,
    choices: int = 1,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Chooses tokens for each row as the target will, with the same noise.

    Args:
      logits: float32[W, Vd], of the frequent tokens.
      token_ids: int32[Vd], these tokens; None if they are the whole vocabulary.
      rows: the prefix of each row.
      state: the state of all slots.
      vocab_size: V of the target.
      choices: how many tokens to choose for each row. Each further one is the choice without those
        before it.

    Returns:
      The tokens of each choice int32[W], and their probability under the draft, float32[W]: 0 for a
      token that repeats an earlier choice, as a forced one does.
    """
    shares = jax.nn.softmax(logits, axis=1)
    columns = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
    tokens: list[jax.Array] = []
    given: list[jax.Array] = []
    for _ in range(choices):
        token, place = _choose_one(logits, token_ids, rows, state, vocab_size)
        share = jnp.take_along_axis(shares, place[:, None], axis=1)[:, 0]
        for earlier in tokens:
            share = jnp.where(token == earlier, 0.0, share)
        tokens.append(token)
        given.append(share)
        logits = jnp.where(columns == place[:, None], -jnp.inf, logits)
    return tokens, given


def _choose_one(
    logits: jax.Array, token_ids: jax.Array | None, rows: Rows, state: DecodeState, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the chosen tokens int32[W], and their indices in `token_ids`."""
    if token_ids is None:
        token = choose_unchecked(logits, rows, state)
        return token, token
    if state.sampling is None:
        place = jnp.argmax(logits, axis=1)
        return token_ids[place], place
    # Noise belongs to places in the vocabulary, so the logits are spread over all of the target's.
    full = jnp.full((logits.shape[0], vocab_size), -jnp.inf, jnp.float32)
    token = choose_unchecked(full.at[:, token_ids].set(logits), rows, state)
    return token, jnp.argmax(token_ids[None] == token[:, None], axis=1)
