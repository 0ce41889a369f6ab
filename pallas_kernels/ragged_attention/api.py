"""Attention of packed rows, each over its own sample's cache of its own length."""

from types import MappingProxyType

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, always_supported, pick
from emsjax.pallas_kernels.checks import check_attention, check_values
from emsjax.pallas_kernels.ragged_attention import gpu, reference, tpu

BACKENDS = MappingProxyType(
    {
        "reference": Backend(reference.ragged_attention, always_supported),
        "tpu": Backend(tpu.ragged_attention, tpu.unsupported),
        "gpu": Backend(gpu.ragged_attention, gpu.unsupported),
    }
)


def ragged_attention(
    q: jax.Array,
    cache: jax.Array,
    *,
    layer: jax.Array,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    num_kv_heads: int,
    max_q_len: int,
    scale: float,
    window: int | jax.Array | None = None,
    soft_cap: float | None = None,
    ancestors: jax.Array | None = None,
    holes: jax.Array | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Causal attention of the rows of every slot over that slot's cache.

    The rows of slot b are the last `cu_q_lens[b+1] - cu_q_lens[b]` of its `kv_lens[b]` tokens,
    whose K/V the cache already holds. For one such row at cache position p this equals

        k, v = keys and values of slot b at positions [0, kv_lens[b])
        s = soft_cap * tanh(scale * (k @ q) / soft_cap)      # plain scale * (k @ q) without cap
        softmax(s where position <= p and position > p - window) @ v

    Nothing at or past `kv_lens` is used, and a row's result does not depend on other slots, nor on
    the rows behind it as long as their values are finite.

    Args:
      q: packed queries [T, N, H].
      cache: keys and values [L, B, S, R, 128], see `kv_layout`; never sliced or copied whole.
      layer: int32[], which layer of the cache to read.
      cu_q_lens: int32[B+1], where each slot's rows start; T >= cu_q_lens[B].
      kv_lens: int32[B], valid tokens of each slot, its rows included; at most S.
      num_kv_heads: K, a divisor of N.
      max_q_len: static bound on the rows of one slot; changing it recompiles.
      scale: factor on the scores.
      window: sliding window in tokens, the row's own included; None for no window.
      soft_cap: logit soft cap; None for none.
      ancestors: uint32[T] for token trees: bit j of a row says that it attends to the j-th row
        of its slot in this buffer (at most 32 rows a slot then); a row's own bit must be set.
        None means a chain.
      holes: bool[B, S], places before `kv_lens` that hold nothing and are not attended to; None
        where there are none. What lies there must be finite. Windows count them.
      backend: "reference" (XLA, anywhere), "tpu" or "gpu" (Hopper); None picks the platform's
        where it can be used, else the reference.

    Returns:
      [T, N, H] in q's dtype; zeros in unused rows.

    Raises:
      ValueError: an argument has a wrong shape or type, or the named backend cannot be used.
    """
    layer, cu_q_lens, kv_lens = map(jnp.asarray, (layer, cu_q_lens, kv_lens))
    check_attention(
        q,
        cache,
        layer,
        cu_q_lens,
        kv_lens,
        ancestors,
        num_kv_heads,
        max_q_len,
        scale,
        window,
        soft_cap,
        holes,
    )
    check_values(
        cu_q_lens,
        kv_lens,
        layer,
        window=window,
        num_rows=q.shape[0],
        max_q_len=max_q_len,
        cache_shape=cache.shape,
    )
    attend = pick("ragged_attention", BACKENDS, backend, q, cache, num_kv_heads, holes)
    options = {} if holes is None else {"holes": holes}
    return attend(
        q,
        cache,
        layer,
        cu_q_lens,
        kv_lens,
        ancestors,
        num_kv_heads=num_kv_heads,
        max_q_len=max_q_len,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        **options,
    )
