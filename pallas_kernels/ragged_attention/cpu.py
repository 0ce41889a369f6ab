"""The CPU backend of ragged attention, see `cpu_kernel`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.pallas_kernels.beside import wait_for
from emsjax.pallas_kernels.foreign import STORED, name_of, registered
from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache

_NO_WINDOW = np.iinfo(np.int32).max // 2


def unsupported(
    q: jax.Array | jax.ShapeDtypeStruct, cache: Cache | jax.ShapeDtypeStruct, num_kv_heads: int
) -> str | None:
    """Returns why the kernel cannot be used for these arguments, or None if it can."""
    del num_kv_heads
    stored = STORED.get(str(q.dtype))
    if stored is None or str(cache.dtype) not in (stored, "int8"):
        return (
            "it takes float32, bfloat16 stored as uint16, and either with an int8 cache, not "
            f"{q.dtype} in {cache.dtype}"
        )
    return registered("ragged_attention", _named_after(q, cache), _load)


def _named_after(
    q: jax.Array | jax.ShapeDtypeStruct, cache: Cache | jax.ShapeDtypeStruct
) -> jnp.dtype:
    """Returns the type that names the kernel: that of an int8 cache, else that of the queries."""
    return cache.dtype if isinstance(cache, Int8Cache) else q.dtype


def _load() -> Callable:
    from emsjax.pallas_kernels.host_call import register
    from emsjax.pallas_kernels.ragged_attention.cpu_kernel import register_kernel

    def register_after_waiting(name: str, dtype: np.dtype) -> None:
        register_kernel(name, dtype, partial(register, before_run=partial(wait_for, name)))

    return register_after_waiting


def prepare(
    q: jax.ShapeDtypeStruct,  # [T, N, H]
    cache: Cache,  # [L, B, S, R, 128], or only its shape
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
    ancestors: jax.Array | None,  # uint32[T]
    holes: jax.Array | None,  # bool[B, S]
    *,
    num_kv_heads: int,
    max_q_len: int,
    tree_starts: jax.Array | None = None,  # int32[B]
) -> Callable[..., jax.Array]:
    """Implements `api.prepare`; the kernel finds its tiles by itself."""
    del max_q_len
    name = name_of("ragged_attention", _named_after(q, cache))
    shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    call = jax.ffi.ffi_call(name, shape, vmap_method="sequential")
    # As in XLA, a wrong index reads something else. It must not read outside the cache and crash.
    cu_q_lens, kv_lens = jnp.clip(cu_q_lens, 0, q.shape[0]), jnp.clip(kv_lens, 0, cache.shape[2])
    ancestors = jnp.zeros(0, jnp.uint32) if ancestors is None else ancestors
    holes = jnp.zeros((0, 0), bool) if holes is None else holes
    trees = jnp.zeros(0, jnp.int32) if tree_starts is None else tree_starts

    def attend(
        q: jax.Array,
        cache: Cache,
        layer: jax.Array,
        *,
        scale: float,
        window: int | jax.Array | None,
        sink_tokens: int | jax.Array | None,
        soft_cap: float | None,
        sinks: jax.Array | None,
    ) -> jax.Array:
        """Implements `api.ragged_attention`."""
        seen = _NO_WINDOW if window is None else window, 0 if sink_tokens is None else sink_tokens
        whole = jnp.stack([jnp.int32(x) for x in (num_kv_heads, *seen)])
        factors = jnp.asarray([scale, soft_cap or 0], jnp.float32)
        wide = q.astype(jnp.float32)
        scores = jnp.zeros(0, jnp.float32) if sinks is None else sinks
        values, scales = cache, jnp.zeros((0,) * 5, jnp.float32)
        if isinstance(cache, Int8Cache):
            values, scales = cache.values, cache.scale
        layer = jnp.clip(layer, 0, cache.shape[0] - 1)
        operands = (cu_q_lens, kv_lens, ancestors, holes, whole, factors, scores, scales, trees)
        return call(wide, values, layer, *operands).astype(q.dtype)

    return attend
