"""Attention for drafts behind every place of whole texts at once, in XLA, with derivatives.

Decoding drafts behind one place of each text. Training does it behind every place, so that the rows
of a draft must see the text before their place, the rows before them in their own draft, and
nothing else. The kernels have no such mask and no derivatives.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.engine.packing import NO_PARENT, PackedBatch
from emsjax.models.config import DecoderConfig
from emsjax.models.layer_context import LayerContext
from emsjax.models.output import soft_capped
from emsjax.models.rotation import query_factor, rotary_angles
from emsjax.pallas_kernels.kv_layout import unpack_kv

_HIDDEN = -1e30


class Seen(NamedTuple):
    """What rows of drafts attend to.

    Attributes:
      text: bool, broadcasts to [d, R, A, S]: which tokens of the text.
      own: bool[d, e]: which rows of their own drafts.
    """

    text: jax.Array
    own: jax.Array


def mixed(
    q: jax.Array,
    text: tuple[jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array],
    seen: Seen,
    scale: float,
    *,
    dtype: jnp.dtype,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Returns the attention of d rows of each draft to a text and to e rows of the draft.

    Args:
      q: queries [d, R, A, K, G, H].
      text: keys and values [R, S, K, H].
      own: keys and values [e, R, A, K, H].
      seen: what is attended to.
      scale: factor on the scores.
      dtype: of the result.
      soft_cap: soft cap of the scores; None for none.
      sinks: float32[N], a score of each head that adds no value; None for none.

    Returns:
      As the queries.
    """
    (k, v), (own_k, own_v) = text, own
    to_text = jnp.einsum("drakgh,rskh->drakgs", q, k)
    to_own = jnp.einsum("drakgh,erakh->drakge", q, own_k)
    masks = seen.text[:, :, :, None, None], seen.own[:, None, None, None, None]
    scores = [
        jnp.where(mask, soft_capped(x.astype(jnp.float32) * scale, soft_cap), _HIDDEN)
        for x, mask in zip((to_text, to_own), masks, strict=True)
    ]
    if sinks is not None:  # take their share of the weights
        of_heads = sinks.reshape(q.shape[3], -1)[None, None, None]
        scores.append(jnp.broadcast_to(of_heads, q.shape[:-1])[..., None])
    shares = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    edges = k.shape[1], k.shape[1] + own_k.shape[0]
    of_text, of_own, _ = jnp.split(shares, edges, axis=-1)
    values = jnp.einsum("drakgs,rskh->drakgh", of_text, v)
    return values + jnp.einsum("drakge,erakh->drakgh", of_own, own_v)


def rows_context(
    config: DecoderConfig, positions: jax.Array, write: Any, attend: Any
) -> LayerContext:
    """Returns the inputs of layers for rows at `positions` int32[T] with an attention of their own.

    Args:
      config: of the layers.
      positions: in the text.
      write: see `LayerContext`.
      attend: see `LayerContext`.
    """
    none = jnp.zeros((), jnp.int32)
    batch = PackedBatch(
        tokens=jnp.zeros_like(positions),
        positions=positions,
        slot_ids=jnp.zeros_like(positions),
        parents=jnp.full_like(positions, NO_PARENT),
        cu_q_lens=jnp.asarray([0, positions.size], jnp.int32),
        kv_lens=jnp.asarray([positions.size], jnp.int32),
    )
    return LayerContext(
        layer=none,
        stacked=None,
        window=None,
        batch=batch,
        angles=rotary_angles(config, positions),
        query_factor=query_factor(config, positions),
        write=write,
        attend=attend,
    )


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
        found = mixed(
            grouped,
            (k, v),
            (own_k, own_v),
            Seen(seen, seen_own),
            scale,
            dtype=dtype,
            soft_cap=soft_cap,
            sinks=sinks,
        )
        return found.reshape(q.shape)

    context = rows_context(config, flat, write, attend)
    nothing = jnp.zeros((flat.size, *heads), dtype)
    return context._replace(stacked=context.layer), (nothing, nothing)
