"""Choosing tokens when each device has the logits of its own part of the vocabulary.

These functions run inside `jax.shard_map` over the axis `SHARDS`, see `engine.devices`. All devices
come to the same choice.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emsjax.sampling.blocks import are_bounded, first_max
from emsjax.sampling.choose import Chosen
from emsjax.sampling.rows import NO_TOKEN, Rows, Slots
from emsjax.shapes import SHARDS


def choose_divided(
    choose: Callable[[jax.Array, Rows, Slots], Chosen],
    vocab_size: int,
    logits: jax.Array,
    rows: Rows,
    state: Slots,
) -> Chosen:
    """Chooses the token that follows each row, [W], as `choose` does.

    Args:
      choose: chooses from logits of the whole vocabulary.
      vocab_size: V.
      logits: float32[W, V / shards], this device's part, padded with -inf.
      rows: the prefixes that the logits follow.
      state: the state of all slots.
    """
    if state.sampling is None:
        return Chosen(_likeliest(logits), None)
    whole = jax.lax.all_gather(logits, SHARDS, axis=1, tiled=True, to="invarying")
    return choose(whole[:, :vocab_size], rows, state)


def _likeliest(logits: jax.Array) -> jax.Array:
    """Returns the likeliest token of each row, int32[W], or `NO_TOKEN`.

    Each device sends a row's largest logit and its place: one small exchange.
    """
    place = first_max(logits)
    largest = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
    # Such logits leave no choice, whichever part has them.
    largest = jnp.where(are_bounded(logits, largest), largest, jnp.nan)
    token = place + jax.lax.axis_index(SHARDS) * logits.shape[1]
    sent = jnp.stack([jax.lax.bitcast_convert_type(largest, jnp.int32), token])
    of_parts = jax.lax.all_gather(sent, SHARDS, to="invarying")
    values = jax.lax.bitcast_convert_type(of_parts[:, 0], jnp.float32)
    part = jnp.argmax(values, axis=0)[None]
    best = jnp.take_along_axis(values, part, axis=0)[0]
    tokens = jnp.take_along_axis(of_parts[:, 1], part, axis=0)[0]
    sound = (best > -jnp.inf) & (values < jnp.inf).all(axis=0)
    return jnp.where(sound, tokens, NO_TOKEN)
