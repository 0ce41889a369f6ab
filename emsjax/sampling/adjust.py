"""Changes to logits before a token is chosen: bias, forbidden tokens, penalties.

Each row is adjusted for its own prefix, which includes draft tokens.
"""

import jax
import jax.numpy as jnp

from emsjax.sampling.choice import Settings
from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.sampling.state import SamplingState


def adjust(
    logits: jax.Array, rows: Rows, settings: Settings, state: Slots, sampling: SamplingState
) -> jax.Array:
    """Applies bias, allowed and banned tokens, `min_tokens` and penalties; returns float32[W, V].

    A row whose slot uses none of these does not change in a single bit.

    Args:
      logits: float32[W, V].
      rows: the prefixes that the logits follow.
      settings: the settings of each row's slot, [W] each.
      state: the state of all slots.
      sampling: `state.sampling`.
    """
    logits = logits + sampling.bias[rows.slots]
    logits = _forbid_stops(logits, rows, settings, state)
    counts = _counts(rows, sampling)
    seen = sampling.in_prompt[rows.slots] | (counts > 0)
    # As in `transformers`, the penalty divides positive logits and multiplies negative ones.
    repetition = jnp.where(seen, settings.repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - settings.frequency_penalty[:, None] * counts.astype(jnp.float32)
    return logits - settings.presence_penalty[:, None] * (counts > 0).astype(jnp.float32)


def _forbid_stops(logits: jax.Array, rows: Rows, settings: Settings, state: Slots) -> jax.Array:
    """Sets stop tokens to -inf while the sample is shorter than its minimum length."""
    early = rows.positions + 1 < settings.min_len
    stop_ids = state.stop_ids[rows.slots]
    columns = jnp.where(early[:, None] & (stop_ids >= 0), stop_ids, logits.shape[1])
    numbers = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    # Added, not set: a NaN stays one, so that `choose` sees it.
    return logits.at[numbers, columns].add(-jnp.inf, mode="drop")


def _counts(rows: Rows, sampling: SamplingState) -> jax.Array:
    """Counts each token in the output that the row follows, draft tokens included; int32[W, V]."""
    vocab_size = sampling.counts.shape[1]
    # `sampling.counts` covers the committed output. The row's draft tokens are added to it.
    columns = jnp.where(rows.path == NO_TOKEN, vocab_size, rows.path)
    numbers = jnp.arange(columns.shape[0], dtype=jnp.int32)[:, None]
    return sampling.counts[rows.slots].at[numbers, columns].add(1, mode="drop")
