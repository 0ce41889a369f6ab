"""The CPU backend of ragged attention, see `cpu_kernel`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.pallas_kernels.beside import wait_for
from emsjax.pallas_kernels.foreign import STORED, name_of, registered

_NO_WINDOW = np.iinfo(np.int32).max // 2


def unsupported(
    q: jax.Array | jax.ShapeDtypeStruct,
    cache: jax.Array | jax.ShapeDtypeStruct,
    num_kv_heads: int,
) -> str | None:
    """Returns why the kernel cannot be used for these arguments, or None if it can."""
    del num_kv_heads
    if str(cache.dtype) != STORED.get(str(q.dtype)):
        return f"it takes float32, or bfloat16 stored as uint16, not {q.dtype} in {cache.dtype}"
    return registered("ragged_attention", q.dtype, _load)


def _load() -> Callable:
    from emsjax.pallas_kernels.ragged_attention.cpu_kernel import register_kernel

    def register(name: str, dtype: np.dtype) -> None:
        wait_for(name)
        register_kernel(name, dtype)

    return register


def prepare(
    q: jax.ShapeDtypeStruct,  # [T, N, H]
    cache: jax.ShapeDtypeStruct,  # [L, B, S, R, 128]
    cu_q_lens: jax.Array,  # int32[B+1]
    kv_lens: jax.Array,  # int32[B]
    ancestors: jax.Array | None,  # uint32[T]
    holes: jax.Array | None,  # bool[B, S]
    *,
    num_kv_heads: int,
    max_q_len: int,
) -> Callable[..., jax.Array]:
    """Implements `api.prepare`; the kernel finds its tiles by itself."""
    del max_q_len
    name = name_of("ragged_attention", q.dtype)
    shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    call = jax.ffi.ffi_call(name, shape, vmap_method="sequential")
    # As in XLA, a wrong index reads something else. It must not read outside the cache and crash.
    cu_q_lens, kv_lens = jnp.clip(cu_q_lens, 0, q.shape[0]), jnp.clip(kv_lens, 0, cache.shape[2])
    ancestors = jnp.zeros(0, jnp.uint32) if ancestors is None else ancestors
    holes = jnp.zeros((0, 0), bool) if holes is None else holes

    def attend(
        q: jax.Array,
        cache: jax.Array,
        layer: jax.Array,
        *,
        scale: float,
        window: int | jax.Array | None,
        soft_cap: float | None,
        sinks: jax.Array | None,
    ) -> jax.Array:
        """Implements `api.ragged_attention`."""
        whole = jnp.stack(
            [jnp.int32(num_kv_heads), jnp.int32(_NO_WINDOW if window is None else window)]
        )
        factors = jnp.asarray([scale, soft_cap or 0], jnp.float32)
        wide = q.astype(jnp.float32)
        scores = jnp.zeros(0, jnp.float32) if sinks is None else sinks
        operands = (cu_q_lens, kv_lens, ancestors, holes, whole, factors, scores)
        return call(wide, cache, jnp.clip(layer, 0, cache.shape[0] - 1), *operands).astype(q.dtype)

    return attend
