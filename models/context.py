"""What the layers of a model share in a step, and the cache they write to."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.engine.packing import PackedBatch
from emsjax.models.config import DecoderConfig
from emsjax.models.layer_context import LayerContext
from emsjax.models.rotation import query_factor, rotary_angles
from emsjax.pallas_kernels.cache_update.api import cache_places, update_kv_cache
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.kv_layout import rows_per_token, storage_dtype
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.api import prepare, prepare_packed


def layer_context(
    config: DecoderConfig, dtype: jnp.dtype, batch: PackedBatch, cache: Cache, max_q_len: int
) -> LayerContext:
    """Returns what all layers share, so that it is computed once and not in every layer.

    Args:
      config: of the model.
      dtype: of the hidden states.
      batch: the rows.
      cache: K/V, see `cache_spec`.
      max_q_len: static bound on the rows of one slot.
    """
    none = jnp.zeros((), jnp.int32)
    heads = (batch.tokens.shape[0], config.num_heads, config.head_dim)
    q = jax.ShapeDtypeStruct(heads, dtype)
    given: dict[str, Any] = {
        "cu_q_lens": batch.cu_q_lens,
        "kv_lens": batch.kv_lens,
        "num_kv_heads": config.num_kv_heads,
        "max_q_len": max_q_len,
        "ancestors": batch.ancestors,
        "tree_starts": batch.tree_starts,
        "holes": batch.holes,
    }
    places = cache_places(batch.slot_ids, batch.cu_q_lens, batch.kv_lens)
    return LayerContext(
        layer=none,
        stacked=none,
        window=None,
        batch=batch,
        angles=rotary_angles(config, batch.positions),
        query_factor=query_factor(config, batch.positions),
        write=partial(
            update_kv_cache,
            slot_ids=batch.slot_ids,
            cu_q_lens=batch.cu_q_lens,
            kv_lens=batch.kv_lens,
            places=places,
        ),
        attend=prepare(q, cache, **given),
        attend_packed=prepare_packed(q, cache, **given, slot_ids=batch.slot_ids, places=places),
    )


def cache_spec(config: DecoderConfig, dtype: jnp.dtype, num_slots: int, capacity: int) -> Any:
    """Returns shape [L, B, S, R, 128] and type of a K/V cache in the dtype of the activations."""
    rows = rows_per_token(config.num_kv_heads, config.head_dim)
    shape = (config.num_layers, num_slots, capacity, rows, LANES)
    return jax.ShapeDtypeStruct(shape, storage_dtype(dtype))
