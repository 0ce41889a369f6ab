"""Logits of every position, computed in packed forward passes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.engine.packing import pack


def _not_numbers(spec: jax.ShapeDtypeStruct) -> jax.Array:
    bad = -128 if spec.dtype == jnp.int8 else jnp.nan
    return jnp.full(spec.shape, bad, spec.dtype)


def our_logits(model: Any, tokens: np.ndarray, chunk: int) -> np.ndarray:
    """Computes logits [B, length, V] in packed forward passes of `chunk` tokens per slot."""
    num_slots, length = tokens.shape
    spec = model.cache_spec(num_slots, 256)
    # The cache starts as NaN, so that reading past `kv_lens` shows.
    cache = jax.tree.map(_not_numbers, spec)
    history = jnp.asarray(tokens, jnp.int32)
    graphdef, params = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def forward(params, cache, starts, rows, capacity):
        model = nnx.merge(graphdef, params)
        batch = pack(history, starts, jnp.full_like(starts, rows), capacity)
        hidden, cache = model(batch, cache, max_q_len=rows)
        return model.logits(hidden), cache

    steps = []
    for start in range(0, length, chunk):
        rows = min(chunk, length - start)
        starts = jnp.full((num_slots,), start, jnp.int32)
        logits, cache = forward(params, cache, starts, rows, num_slots * rows + 3)
        logits = logits[: num_slots * rows]
        steps.append(np.asarray(logits).reshape(num_slots, rows, -1))
    return np.concatenate(steps, axis=1)
