"""From logits to tokens: the one place where a token is chosen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.adapt import is_hard
from emsjax.sampling.adjust import adjust
from emsjax.sampling.choice import Settings
from emsjax.sampling.draw import draw
from emsjax.sampling.filters import Filters, keep, scale
from emsjax.sampling.logprobs import Logprobs, empty_logprobs, logprobs_of
from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.sampling.state import SamplingState
from emsjax.sampling.vocabulary import WHOLE, Vocabulary


class Chosen(NamedTuple):
    """The chosen tokens, in an array of any shape [...].

    Attributes:
      tokens: int32[...]; `NO_TOKEN` where the logits leave no choice: one of them is NaN or
        infinite, or all are -inf.
      logprobs: log-probabilities of the tokens; None if `DecodeState.sampling` is None.
    """

    tokens: jax.Array
    logprobs: Logprobs | None


def choose(logits: jax.Array, rows: Rows, state: Slots, vocabulary: Vocabulary = WHOLE) -> Chosen:
    """Chooses the token that follows each row, [W].

    Args:
      logits: float32[W, V], from the model, or this device's part of them.
      rows: the prefixes that the logits follow.
      state: the state of all slots.
      vocabulary: which tokens the logits are of.
    """
    tokens, sound = _pick(logits, rows, state, vocabulary)
    sampling = state.sampling
    if sampling is None:
        return Chosen(jnp.where(sound, tokens, NO_TOKEN), None)
    wanted = (sampling.settings.logprobs & state.live).any()
    logprobs = jax.lax.cond(
        wanted,
        lambda: logprobs_of(logits, tokens, vocabulary),
        lambda: empty_logprobs(tokens.shape),
    )
    return Chosen(jnp.where(sound, tokens, NO_TOKEN), logprobs)


def choose_unchecked(logits: jax.Array, rows: Rows, state: Slots) -> jax.Array:
    """Returns the tokens that `choose` would choose, int32[W], and any token where it chooses none.

    This is for drafters. Logits of a drafter that are not numbers cost time and change no text.
    """
    return _pick(logits, rows, state, WHOLE)[0]


def _pick(
    logits: jax.Array, rows: Rows, state: Slots, vocabulary: Vocabulary
) -> tuple[jax.Array, jax.Array]:
    """Returns a token for each row, int32[W], and whether its logits leave a choice, bool[W]."""
    sampling = state.sampling
    if sampling is None:
        return vocabulary.first_max(logits)
    settings = jax.tree.map(lambda x: x[rows.slots], sampling.settings)
    # Each `cond` skips work over the whole vocabulary in steps in which no live slot needs it.
    adjusted = jax.lax.cond(
        (sampling.settings.adjusted & state.live).any(),
        lambda: adjust(logits, rows, settings, state, sampling, vocabulary),
        lambda: logits,
    )
    tokens, sound = vocabulary.first_max(adjusted)
    hard = is_hard(rows, sampling.token_classes)
    temperature = jnp.where(hard, settings.adapt_temperature, settings.temperature)
    hot = (temperature > 0) & state.live[rows.slots]

    def sample() -> jax.Array:
        drawn = _sample(adjusted, temperature, rows, settings, sampling, vocabulary)
        return jnp.where(hot, drawn, tokens)

    return jax.lax.cond(hot.any(), sample, lambda: tokens), sound


def _sample(
    logits: jax.Array,
    temperature: jax.Array,
    rows: Rows,
    settings: Settings,
    sampling: SamplingState,
    vocabulary: Vocabulary,
) -> jax.Array:
    filters = Filters(settings.top_k, settings.top_p, settings.min_p)
    x = keep(scale(logits, temperature, vocabulary), filters, vocabulary)
    return draw(x, sampling.keys[rows.slots], rows.positions, vocabulary)
