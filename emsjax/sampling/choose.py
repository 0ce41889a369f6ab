"""From logits to tokens: the one place where a token is chosen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling.adapt import is_hard
from emsjax.sampling.adjust import adjust
from emsjax.sampling.blocks import first_max
from emsjax.sampling.draw import draw
from emsjax.sampling.filters import Filters, keep, scale
from emsjax.sampling.logprobs import Logprobs, empty_logprobs, logprobs_of
from emsjax.sampling.rows import Rows, Slots
from emsjax.sampling.state import SamplingState


class Chosen(NamedTuple):
    """Tokens, arranged [...].

    Attributes:
      tokens: int32[...].
      logprobs: of the tokens; None where `DecodeState.sampling` is.
    """

    tokens: jax.Array
    logprobs: Logprobs | None


def choose(logits: jax.Array, rows: Rows, state: Slots) -> Chosen:
    """The token that follows each row, [W].

    Args:
      logits: float32[W, V], the model's.
      rows: the prefixes that the logits follow.
      state: of all slots.
    """
    sampling = state.sampling
    if sampling is None:
        return Chosen(first_max(logits), None)
    adjusted = jax.lax.cond(
        (sampling.adjusted & state.live).any(),
        lambda: adjust(logits, rows, state, sampling),
        lambda: logits,
    )
    tokens = first_max(adjusted)
    hot = (_temperature(rows, sampling) > 0) & state.live[rows.slots]
    tokens = jax.lax.cond(
        hot.any(),
        lambda: jnp.where(hot, _sample(adjusted, rows, sampling), tokens),
        lambda: tokens,
    )
    wanted = (sampling.wants_logprobs & state.live).any()
    logprobs = jax.lax.cond(
        wanted, lambda: logprobs_of(logits, tokens), lambda: empty_logprobs(tokens.shape)
    )
    return Chosen(tokens, logprobs)


def _temperature(rows: Rows, sampling: SamplingState) -> jax.Array:
    hard = is_hard(rows, sampling.token_classes)
    return jnp.where(hard, sampling.adapt_temperature[rows.slots], sampling.temperature[rows.slots])


def _sample(logits: jax.Array, rows: Rows, sampling: SamplingState) -> jax.Array:
    slots = rows.slots
    x = scale(logits, _temperature(rows, sampling))
    filters = Filters(sampling.top_k[slots], sampling.top_p[slots], sampling.min_p[slots])
    return draw(keep(x, filters), sampling.keys[slots], rows.positions)
