"""Drafting on the blocks of a text that the last queries of its prompt attend to most (SnapKV).

Only an experiment, for `window_agreement`: attention skips nothing, but masks all other places.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from emsjax.engine.model import Inner, Model, Pass, View
from emsjax.engine.packing import PackedBatch, pack
from emsjax.engine.state import DecodeState
from emsjax.models.context import layer_context
from emsjax.models.decoder import DecoderLM
from emsjax.pallas_kernels.kv_layout import unpack_kv

BLOCK, QUERIES = 64, 32


def attended(model: DecoderLM, state: DecodeState, count: int) -> jax.Array:
    """Returns the places of each prompt's most attended blocks, bool[B, S].

    Attention is added up over layers, heads and the prompt's last `QUERIES` rows.

    Args:
      model: the target.
      state: with the K/V of all prompts, which have at least `QUERIES` tokens.
      count: blocks of each prompt.
    """
    slots, capacity = state.tokens.shape
    config, sums = model.config, jnp.zeros((slots, capacity))
    starts, q_lens = state.prompt_lens - QUERIES, jnp.full(slots, QUERIES, jnp.int32)
    batch = pack(state.tokens, starts, q_lens, slots * QUERIES)
    context = layer_context(config, model.dtype, batch, state.cache, QUERIES)

    def attend(q: jax.Array, cache: Any, *, layer: jax.Array, scale: float, **rest: Any) -> Any:
        nonlocal sums
        k, _ = unpack_kv(cache[layer], config.num_kv_heads, config.head_dim, model.dtype)
        rows = q.reshape(slots, QUERIES, config.num_kv_heads, -1, config.head_dim)
        scores = scale * jnp.einsum("bqkgh,bskh->bkgqs", rows, k).astype(jnp.float32)
        places = jnp.arange(capacity)[None, None]
        seen = places <= (starts[:, None] + jnp.arange(QUERIES))[..., None]
        shares = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
        sums = sums + shares.sum(axis=(1, 2, 3))
        return context.attend(q, cache, layer=layer, scale=scale, **rest)

    with jax.disable_jit():  # so that `attend` can add to a variable
        start = Inner(model.embedder(batch, model.dtype), 0)
        model.run_layers(start, state.cache, context._replace(attend=attend))
    padded = jnp.pad(sums, ((0, 0), (0, -capacity % BLOCK)))
    blocks = padded.reshape(slots, -1, BLOCK).sum(axis=2)
    _, best = jax.lax.top_k(blocks, count)
    chosen = jnp.zeros(blocks.shape, bool).at[jnp.arange(slots)[:, None], best].set(True)
    return jnp.repeat(chosen, BLOCK, axis=1)[:, :capacity]


class OnBlocks:
    """A model whose rows see the chosen places besides sink tokens and window."""

    def __init__(self, model: Model, chosen: jax.Array):
        """Masks all places but `chosen` bool[B, S] and those of the view."""
        self._model, self._chosen = model, chosen

    def run(self, batch: PackedBatch, cache: Any, *, max_q_len: int, view: View) -> Pass:
        """See `Model.run`; each slot has at most one row."""
        places = jnp.arange(self._chosen.shape[1], dtype=jnp.int32)[None]
        near = places >= batch.kv_lens[:, None] - view.window
        seen = self._chosen | near | (places < view.sink_tokens)
        return self._model.run(batch._replace(holes=~seen), cache, max_q_len=max_q_len)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """See `Model.logits`."""
        return self._model.logits(hidden)


def merge_on_blocks(graphdef: Any, chosen: jax.Array) -> Callable[[Any], Any]:
    """Returns the function that builds the model from its parameters."""
    return lambda weights: OnBlocks(nnx.merge(graphdef, weights), chosen)
