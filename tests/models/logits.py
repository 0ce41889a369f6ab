"""Logits of every position, computed in packed forward passes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from emsjax.engine.devices import CACHE, ONE, SAME, Devices
from emsjax.engine.packing import pack
from emsjax.shapes import SHARDS


def _not_numbers(spec: jax.ShapeDtypeStruct) -> jax.Array:
    bad = -128 if spec.dtype == jnp.int8 else jnp.nan
    return jnp.full(spec.shape, bad, spec.dtype)


def our_logits(model: Any, tokens: np.ndarray, chunk: int, devices: Devices = ONE) -> np.ndarray:
    """Computes logits [B, length, V] in packed forward passes of `chunk` tokens per slot."""
    num_slots, length = tokens.shape
    spec = model.cache_spec(num_slots, 256)
    # The cache starts as NaN, so that reading past `kv_lens` shows.
    cache = devices.program(lambda: jax.tree.map(_not_numbers, spec), (), CACHE)()
    history = jnp.asarray(tokens, jnp.int32)
    graphdef, params = nnx.split(model)

    @functools.cache
    def program(rows: int) -> Any:
        def forward(params, cache, starts, history):
            model = nnx.merge(graphdef, params)
            lens = jnp.full_like(starts, rows)
            batch = pack(history, starts, lens, num_slots * rows + 3)
            hidden, cache = model(batch, cache, max_q_len=rows)
            return model.logits(hidden), cache

        places = devices.specs_of(params), CACHE, SAME, SAME
        return devices.program(forward, places, (PartitionSpec(None, SHARDS), CACHE))

    steps = []
    for start in range(0, length, chunk):
        rows = min(chunk, length - start)
        starts = jnp.full((num_slots,), start, jnp.int32)
        logits, cache = program(rows)(params, cache, starts, history)
        logits = logits[: num_slots * rows, : model.vocab_size]
        steps.append(np.asarray(logits).reshape(num_slots, rows, -1))
    return np.concatenate(steps, axis=1)
