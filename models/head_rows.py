"""Attention of a draft head behind every place of whole texts at once, with derivatives.

A head has K/V of its own, so what its rows attend to is trained as well, unlike in `draft_rows`. A
row of the text sees the rows before it. A row of a draft sees those before the draft's place, the
one at the place, and the draft's own rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emsjax.models.config import DecoderConfig
from emsjax.models.draft_rows import Seen, mixed, rows_context
from emsjax.models.layer_context import LayerContext


class HeadRows(NamedTuple):
    """The K/V of a head's only layer.

    Attributes:
      text: keys and values [R, S, K, H] of the rows of R texts; None before there are any.
      own: those of drafts, [e, R, A, K, H]: of the row at the place and of the draft's own rows.
    """

    text: tuple[jax.Array, jax.Array] | None
    own: tuple[jax.Array, jax.Array] | None


def at_places(rows: HeadRows, places: jax.Array) -> HeadRows:
    """Returns the K/V for drafts behind places int32[R, A] of the texts."""
    assert rows.text is not None
    index = places[:, :, None, None]
    k, v = (jnp.take_along_axis(x, index, axis=1)[None] for x in rows.text)
    return rows._replace(own=(k, v))


def head_context(
    config: DecoderConfig, starts: jax.Array, depth: int, dtype: jnp.dtype
) -> LayerContext:
    """Returns the inputs of a head's layer for a row of each draft, packed as [R, A].

    The cache of the layer is `HeadRows`. Without own rows, the rows are those of the text itself.

    Args:
      config: of the head's layer.
      starts: int32[R, A], the place in the text behind which each draft begins.
      depth: how many rows of the draft there are before this one; 0 for rows of the text.
      dtype: of the states.
    """
    texts, places = starts.shape
    heads = config.num_kv_heads, config.head_dim

    def write(cache: HeadRows, k: jax.Array, v: jax.Array, *, layer: jax.Array) -> HeadRows:
        del layer
        k, v = (x.reshape(texts, places, *heads) for x in (k, v))
        if cache.own is None:
            return HeadRows((k, v), (k[None], v[None]))
        old_k, old_v = cache.own
        own = jnp.concatenate([old_k, k[None]]), jnp.concatenate([old_v, v[None]])
        return cache._replace(own=own)

    def attend(
        q: jax.Array,
        cache: HeadRows,
        *,
        scale: float,
        **others: Any,
    ) -> jax.Array:
        del others  # the head has one layer, and nothing that these change
        assert cache.text is not None
        assert cache.own is not None
        known = jnp.arange(cache.text[0].shape[1], dtype=jnp.int32)
        text = (known[None, None] < starts[:, :, None])[None]
        seen = Seen(text, jnp.ones((1, depth + 1), jnp.bool))
        grouped = q.reshape(1, texts, places, heads[0], -1, heads[1])
        return mixed(grouped, cache.text, cache.own, seen, scale, dtype=dtype).reshape(q.shape)

    return rows_context(config, (starts + depth).ravel(), write, attend)
