"""From logits to tokens: the one place where a token is chosen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.adapt import is_hard
from emsjax.sampling.adjust import adjust
from emsjax.sampling.blocks import first_max, has_maximum
from emsjax.sampling.choice import Settings
from emsjax.sampling.draw import draw
from emsjax.sampling.filters import Filters, keep, scale
from emsjax.sampling.logprobs import Logprobs, empty_logprobs, logprobs_of
from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.sampling.state import SamplingState


class Chosen(NamedTuple):
    """The chosen tokens, in an array of any shape [...].

    Attributes:
      tokens: int32[...]; `NO_TOKEN` where the logits leave no choice: one of them is NaN or
        infinite, or all are -inf.
      logprobs: log-probabilities of the tokens; None if `DecodeState.sampling` is None.
    """

    tokens: jax.Array
    logprobs: Logprobs | None


def choose(logits: jax.Array, rows: Rows, state: Slots) -> Chosen:
    """Chooses the token that follows each row, [W].

    Args:
      logits: float32[W, V], from the model.
      rows: the prefixes that the logits follow.
      state: the state of all slots.
    """
    tokens, sound = _pick(logits, rows, state)
    sampling = state.sampling
    if sampling is None:
        return Chosen(jnp.where(sound, tokens, NO_TOKEN), None)
    wanted = (sampling.settings.logprobs & state.live).any()
    logprobs = jax.lax.cond(
        wanted, lambda: logprobs_of(logits, tokens), lambda: empty_logprobs(tokens.shape)
    )
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


def weighed(logits: jax.Array, rows: Rows, state: Slots, sampling: SamplingState) -> Weighed:
    """Applies what the rows' requests change about logits [W, V], except for temperature."""
    settings = jax.tree.map(lambda x: x[rows.slots], sampling.settings)
    # Each `cond` skips work over the whole vocabulary in steps in which no live slot needs it.
    adjusted = jax.lax.cond(
        (sampling.settings.adjusted & state.live).any(),
        lambda: adjust(logits, rows, settings, state, sampling),
        lambda: logits,
    )
    hard = is_hard(rows, sampling.token_classes)
    temperature = jnp.where(hard, settings.adapt_temperature, settings.temperature)
    return Weighed(adjusted, temperature, (temperature > 0) & state.live[rows.slots], settings)


def scaled(logits: jax.Array, temperature: jax.Array, settings: Settings) -> jax.Array:
    """Returns logits [W, V] after temperature and filters, at most 0, for `draw`."""
    filters = Filters(settings.top_k, settings.top_p, settings.min_p)
    return keep(scale(logits, temperature), filters)


def _pick(logits: jax.Array, rows: Rows, state: Slots) -> tuple[jax.Array, jax.Array]:
    """Returns a token for each row, int32[W], and whether its logits leave a choice, bool[W]."""
    sampling = state.sampling
    if sampling is None:
        tokens = first_max(logits)
        return tokens, has_maximum(logits, tokens)
    given = weighed(logits, rows, state, sampling)
    tokens = first_max(given.logits)
    sound = has_maximum(given.logits, tokens)
    draws = given.logits, given.temperature, rows, given.settings, sampling
    tokens = jax.lax.cond(
        given.hot.any(),
        lambda: jnp.where(given.hot, _sample(*draws), tokens),
        lambda: tokens,
    )
    return tokens, sound


def _sample(
    logits: jax.Array,
    temperature: jax.Array,
    rows: Rows,
    settings: Settings,
    sampling: SamplingState,
) -> jax.Array:
    x = scaled(logits, temperature, settings)
    return draw(x, sampling.keys[rows.slots], rows.positions)
