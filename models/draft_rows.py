"""Attention for drafts behind every place of whole texts at once, in XLA, with derivatives.

Decoding drafts behind one place of each text. Training does it behind every place, so that the rows
of a draft must see the text before their place, the rows before them in their own draft, and
nothing else. The kernels have no such mask and no derivatives.
"""

from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.packing import NO_PARENT, PackedBatch
from emsjax.models.config import DecoderConfig
from emsjax.models.layers import LayerContext, query_factor, rotary_angles, soft_capped
from emsjax.pallas_kernels.kv_layout import unpack_kv

_HIDDEN = -1e30


def draft_context(
    config: DecoderConfig, text_cache: jax.Array, starts: jax.Array, depths: int, dtype: jnp.dtype
) -> tuple[LayerContext, Any]:
    """Returns the inputs of layers for drafts of `depths` rows behind A places of R texts.

    The rows are packed as [depths, R, A].

    Args:
      config: of the target.
      text_cache: K/V [L, R, S, rows, 128] of the whole texts.
      starts: int32[R, A], the place in the text of each draft's first row. The draft sees what is
        before it.
      depths: the number of rows of each draft.
      dtype: of the hidden states.

    Returns:
      What the layers share, and the K/V with which they begin.
    """
    texts, places = starts.shape
    heads = config.num_kv_heads, config.head_dim
    depth = jnp.arange(depths, dtype=jnp.int32)
    positions = depth[:, None, None] + starts[None]
    flat = positions.ravel()

    def write(cache: Any, k: jax.Array, v: jax.Array, *, layer: jax.Array) -> Any:
        del cache, layer
        return k, v

    def attend(
        q: jax.Array,
        cache: Any,
        *,
        layer: jax.Array,
        scale: float,
        window: int | jax.Array | None = None,
        sink_tokens: int | jax.Array | None = None,
        soft_cap: float | None = None,
        sinks: jax.Array | None = None,
    ) -> jax.Array:
        assert sink_tokens is None, "no draft is trained on a part of the text"
        of_layer = jax.lax.dynamic_index_in_dim(text_cache, layer, keepdims=False)
        k, v = unpack_kv(of_layer, *heads, dtype)
        own_k, own_v = (x.reshape(depths, texts, places, *heads) for x in cache)
        grouped = q.reshape(depths, texts, places, heads[0], -1, heads[1])
        known = jnp.arange(k.shape[1], dtype=jnp.int32)[None, None, None]
        seen = known < starts[None, ..., None]
        seen_own = depth[None] <= depth[:, None]
        if window is not None:
            seen = seen & (known > positions[..., None] - window)
            seen_own = seen_own & (depth[None] > depth[:, None] - window)
        else:
            seen = jnp.broadcast_to(seen, (depths, *seen.shape[1:]))
        to_text = jnp.einsum("drakgh,rskh->drakgs", grouped, k)
        to_own = jnp.einsum("drakgh,erakh->drakge", grouped, own_k)
        masks = seen[:, :, :, None, None], seen_own[:, None, None, None, None]
        scores = [
            jnp.where(mask, soft_capped(x.astype(jnp.float32) * scale, soft_cap), _HIDDEN)
            for x, mask in zip((to_text, to_own), masks, strict=True)
        ]
        if sinks is not None:  # take their share of the weights, and add no value
            shape = scores[0].shape[:-1]
            of_heads = sinks.reshape(heads[0], -1)[None, None, None]
            scores.append(jnp.broadcast_to(of_heads, shape)[..., None])
        shares = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
        of_text, of_own, _ = jnp.split(shares, (k.shape[1], k.shape[1] + depths), axis=-1)
        mixed = jnp.einsum("drakgs,rskh->drakgh", of_text, v)
        mixed += jnp.einsum("drakge,erakh->drakgh", of_own, own_v)
        return mixed.reshape(q.shape)

    none = jnp.zeros((), jnp.int32)
    batch = PackedBatch(
        tokens=jnp.zeros_like(flat),
        positions=flat,
        slot_ids=jnp.zeros_like(flat),
        parents=jnp.full_like(flat, NO_PARENT),
        cu_q_lens=jnp.asarray([0, flat.size], jnp.int32),
        kv_lens=jnp.asarray([flat.size], jnp.int32),
    )
    context = LayerContext(
        layer=none,
        stacked=none,
        window=None,
        batch=batch,
        angles=rotary_angles(config, flat),
        query_factor=query_factor(config, flat),
        write=write,
        attend=attend,
    )
    nothing = jnp.zeros((flat.size, *heads), dtype)
    return context, (nothing, nothing)
