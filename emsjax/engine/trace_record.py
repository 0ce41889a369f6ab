"""The record of what each step drafted: written on the device, read on the host for traces."""

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.trace import TraceStep

# Marks entries of the record without a draft token.
NOTHING = -1


def no_drafts(num_slots: int, draft_length: int, capacity: int) -> jax.Array:
    """Returns an empty record, int32[B, k, S].

    A step's draft goes into the column of the first token that the step emits. Every step that
    drafts emits a token, so no two steps need the same column. S is the last axis because TPUs
    would pad a short last axis to 128.
    """
    return jnp.full((num_slots, draft_length, capacity), NOTHING, jnp.int32)


def record_drafts(
    drafts: jax.Array,
    guesses: jax.Array,
    lens: jax.Array,
    draft_lens: jax.Array,
    emitting: jax.Array,
) -> jax.Array:
    """Returns the record with one more step.

    Args:
      drafts: int32[B, k, S], the record.
      guesses: int32[B, k], the step's draft tokens.
      lens: int32[B], known tokens before the step.
      draft_lens: int32[B], how many guesses were verified.
      emitting: bool[B], the slots that emit tokens in this step.
    """
    num_slots, length, capacity = drafts.shape
    place = jnp.arange(length, dtype=jnp.int32)[None]
    guesses = jnp.where(place < draft_lens[:, None], guesses, NOTHING)
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    columns = jnp.where(emitting, lens, capacity)
    return drafts.at[slots, :, columns].set(guesses, mode="drop")


def steps_of(
    tokens: np.ndarray, emitted_at: np.ndarray, drafts: np.ndarray, kept: int
) -> tuple[TraceStep, ...]:
    """Reconstructs the steps that emitted tokens from the arrays of one slot.

    Args:
      tokens: int32[n], all generated tokens.
      emitted_at: int32[n], the number of the step that emitted each token, rising.
      drafts: int32[k, n], each step's draft in the column of its first token, padded with negative
        numbers; other columns have no meaning.
      kept: how many of the tokens are in the output.
    """
    steps, first = [], 0
    for count in np.unique(emitted_at, return_counts=True)[1].tolist():
        draft = drafts[:, first]
        draft = draft[draft >= 0]
        # The record does not say how many tokens were accepted. They are those that equal the text.
        compared = min(count, len(draft))
        hits = draft[:compared] == tokens[first : first + compared]
        accepted = int(np.cumprod(hits).sum())
        emitted = min(max(kept - first, 0), count)
        steps.append(TraceStep(tuple(draft.tolist()), accepted, emitted))
        first += count
    return tuple(steps)
