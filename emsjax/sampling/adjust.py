"""Changes to logits before a token is chosen: bias, grammar, penalties, forbidden, forced tokens.

Each row is adjusted for its own prefix, which includes draft tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emsjax.sampling.choice import Settings
from emsjax.sampling.forbidden import forbid, forbid_repeats, forbid_words
from emsjax.sampling.grammar import keep_grammar, must_end, rows_of
from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.sampling.schedule import is_due, keep_schedule
from emsjax.sampling.state import SamplingState
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


def adjust(
    logits: jax.Array,
    rows: Rows,
    settings: Settings,
    state: Slots,
    sampling: SamplingState,
    vocabulary: Vocabulary = WHOLE,
) -> jax.Array:
    """Applies everything that comes before temperature and filters; returns float32[W, V].

    The order does not matter to what forbids tokens. What forces them comes last.
    A row whose slot uses none of these does not change in a single bit.

    Args:
      logits: float32[W, V], or this device's part of them.
      rows: the prefixes that the logits follow.
      settings: the settings of each row's slot, [W] each.
      state: the state of all slots.
      sampling: `state.sampling`.
      vocabulary: which tokens the logits are of.
    """
    width = logits.shape[1]
    logits = logits + vocabulary.own(sampling.bias, width)[rows.slots]
    early = rows.positions + 1 < settings.min_len
    if sampling.grammars is not None:
        at = rows_of(sampling.grammars, rows)
        logits = keep_grammar(logits, rows, at, sampling.grammars, state, vocabulary)
        # A minimum length gives way where the grammar allows nothing but the end.
        early &= ~must_end(sampling.grammars, at)
    logits = _forbid_stops(logits, rows, early, state, vocabulary)
    counts = _counts(rows, sampling, width, vocabulary)
    seen = vocabulary.own(sampling.in_prompt, width)[rows.slots] | (counts > 0)
    # As in `transformers`, the penalty divides positive logits and multiplies negative ones.
    repetition = jnp.where(seen, settings.repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - settings.frequency_penalty[:, None] * counts.astype(jnp.float32)
    logits = logits - settings.presence_penalty[:, None] * (counts > 0).astype(jnp.float32)
    return _by_text(logits, rows, settings, state, sampling, vocabulary)


def _by_text(
    logits: jax.Array,
    rows: Rows,
    settings: Settings,
    state: Slots,
    sampling: SamplingState,
    vocabulary: Vocabulary,
) -> jax.Array:
    """Applies what few requests need: n-grams, words and the schedule."""
    live = state.live[rows.slots]
    sizes = jnp.where(live, settings.no_repeat_ngram_size, 0)
    logits = _where_needed(
        (sizes > 0).any(), logits, lambda now: forbid_repeats(now, rows, sizes, state, vocabulary)
    )
    with_words = ((sampling.words[:, 0, 0] != NO_TOKEN) & state.live).any()

    def words_and_schedule(logits: jax.Array) -> jax.Array:
        logits = forbid_words(logits, rows, sampling.words, state, vocabulary)
        return keep_schedule(logits, rows, sampling.scheduled, vocabulary)

    # One loop for both: both are cheap, and each loop adds to the time to compile.
    due = is_due(rows, sampling.scheduled).any()
    return _where_needed(with_words | due, logits, words_and_schedule)


def _where_needed(
    needed: jax.Array, logits: jax.Array, change: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Returns `change(logits)` if needed, else the logits.

    The loop has one trip or none. Unlike `lax.cond` it does not copy the logits that it returns.
    """
    start = (needed, logits)
    return jax.lax.while_loop(
        lambda now: now[0], lambda now: (jnp.zeros_like(needed), change(now[1])), start
    )[1]


def _forbid_stops(
    logits: jax.Array, rows: Rows, early: jax.Array, state: Slots, vocabulary: Vocabulary
) -> jax.Array:
    """Sets stop tokens to -inf in rows bool[W] whose sample is shorter than its minimum length."""
    stop_ids = state.stop_ids[rows.slots]
    return forbid(logits, stop_ids, early[:, None] & (stop_ids >= 0), vocabulary)


def _counts(rows: Rows, sampling: SamplingState, width: int, vocabulary: Vocabulary) -> jax.Array:
    """Counts each token in the output that the row follows, draft tokens included; int32[W, V]."""
    # `sampling.counts` covers the committed output. The row's draft tokens are added to it.
    columns = jnp.where(rows.path == NO_TOKEN, width, vocabulary.places(rows.path, width))
    numbers = jnp.arange(columns.shape[0], dtype=jnp.int32)[:, None]
    counts = vocabulary.own(sampling.counts, width)[rows.slots]
    return counts.at[numbers, columns].add(1, mode="drop")
