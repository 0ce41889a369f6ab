"""Log-probabilities of what was emitted: the model's own, before anything adjusts them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emsjax.sampling_params import MAX_LOGPROBS


class Logprobs(NamedTuple):
    """Of tokens in any arrangement [...].

    Attributes:
      chosen: float32[...], the token's own.
      rank: int32[...], its place among all, 1 for the likeliest.
      top_ids: int32[..., 20], the likeliest tokens, likeliest first.
      top: float32[..., 20], theirs.
    """

    chosen: jax.Array
    rank: jax.Array
    top_ids: jax.Array
    top: jax.Array


def empty_logprobs(shape: tuple[int, ...]) -> Logprobs:
    """Zeros for tokens arranged as `shape`."""
    each = (jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))
    many = (*shape, MAX_LOGPROBS)
    return Logprobs(*each, jnp.zeros(many, jnp.int32), jnp.zeros(many, jnp.float32))


def logprobs_of(logits: jax.Array, tokens: jax.Array) -> Logprobs:
    """Those of tokens int32[W] under logits float32[W, V]."""
    total = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)
    likelier = (logits > chosen).sum(axis=1, dtype=jnp.int32)
    found = min(MAX_LOGPROBS, logits.shape[1])
    top, top_ids = jax.lax.top_k(logits, found)
    missing = ((0, 0), (0, MAX_LOGPROBS - found))
    return Logprobs(
        chosen=chosen[:, 0] - total,
        rank=likelier + 1,
        top_ids=jnp.pad(top_ids.astype(jnp.int32), missing),
        top=jnp.pad(top - total[:, None], missing, constant_values=-jnp.inf),
    )


def record(table: Logprobs, new: Logprobs, lens: jax.Array, emitted: jax.Array) -> Logprobs:
    """Writes each slot's first `emitted[b]` of [B, n, ...] into [B, S, ...] from `lens[b]` on."""
    num_slots, capacity = table.chosen.shape
    steps = jnp.arange(new.chosen.shape[1], dtype=jnp.int32)[None]
    columns = jnp.where(steps < emitted[:, None], lens[:, None] + steps, capacity)
    slots = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    return Logprobs(
        *(old.at[slots, columns].set(x, mode="drop") for old, x in zip(table, new, strict=True))
    )
