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
    # Always true, and known only after the branch, so that no exchange which needs the tokens can
    # overtake those inside, see `docs/several-devices.md`.
    sound &= logprobs.rank >= 0
    return Chosen(jnp.where(sound, tokens, NO_TOKEN), logprobs)


class Weighed(NamedTuple):
    """What chance decides over.

    Attributes:
      logits: float32[W, V], with what the requests add and forbid.
      temperature: float32[W], of each row.
      hot: bool[W], which rows are drawn. The others take the likeliest token.
      settings: of each row's slot, [W] each.
    """

    logits: jax.Array
    temperature: jax.Array
    hot: jax.Array
    settings: Settings


def weighed(
    logits: jax.Array,
    rows: Rows,
    state: Slots,
    sampling: SamplingState,
    vocabulary: Vocabulary = WHOLE,
) -> Weighed:
    """Applies what the rows' requests change about logits [W, V], except for temperature."""
    settings = jax.tree.map(lambda x: x[rows.slots], sampling.settings)
    # Each `cond` skips work over the whole vocabulary in steps in which no live slot needs it.
    adjusted = jax.lax.cond(
        (sampling.settings.adjusted & state.live).any(),
        lambda: adjust(logits, rows, settings, state, sampling, vocabulary),
        lambda: logits,
    )
    hard = is_hard(rows, sampling.token_classes)
    temperature = jnp.where(hard, settings.adapt_temperature, settings.temperature)
    return Weighed(adjusted, temperature, (temperature > 0) & state.live[rows.slots], settings)


def scaled(
    logits: jax.Array, temperature: jax.Array, settings: Settings, vocabulary: Vocabulary = WHOLE
) -> jax.Array:
    """Returns logits [W, V] after temperature and filters, at most 0, for `draw`."""
    filters = Filters(settings.top_k, settings.top_p, settings.min_p)
    return keep(scale(logits, temperature, vocabulary), filters, vocabulary)


def _pick(
    logits: jax.Array, rows: Rows, state: Slots, vocabulary: Vocabulary
) -> tuple[jax.Array, jax.Array]:
    """Returns a token for each row, int32[W], and whether its logits leave a choice, bool[W]."""
    sampling = state.sampling
    if sampling is None:
        return vocabulary.first_max(logits)
    given = weighed(logits, rows, state, sampling, vocabulary)
    tokens, sound = vocabulary.first_max(given.logits)

    def sample() -> jax.Array:
        x = scaled(given.logits, given.temperature, given.settings, vocabulary)
        drawn = draw(x, sampling.keys[rows.slots], rows.positions, vocabulary)
        return jnp.where(given.hot, drawn, tokens)

    return jax.lax.cond(given.hot.any(), sample, lambda: tokens), sound
