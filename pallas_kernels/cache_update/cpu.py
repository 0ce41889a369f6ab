"""The CPU backend of a new cache: memory that nobody writes, see `cpu_kernel`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.foreign import name_of, registered

_OPERATION = "new_cache"


def unsupported(spec: jax.ShapeDtypeStruct) -> str | None:
    """Returns why the kernel cannot be used, or None if it can."""
    del spec
    return registered(_OPERATION, jnp.float32.dtype, _load)


def _load() -> Callable:
    from emsjax.pallas_kernels.cache_update.cpu_kernel import register_kernel

    return register_kernel


def new_cache(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """See `api.new_cache`."""
    return jax.ffi.ffi_call(name_of(_OPERATION, jnp.float32.dtype), spec)()
