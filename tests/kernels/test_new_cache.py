"""A new cache takes no memory before it is written."""

import resource

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.cache_update.api import new_cache

SPEC = jax.ShapeDtypeStruct((2, 8, 4096, 8, 128), jnp.float32)  # 256 MiB


def faults() -> int:
    """Returns how many pages of memory the process has been given."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_only_what_is_written_takes_memory():
    make = jax.jit(lambda: new_cache(SPEC, backend="cpu")).lower().compile()
    write = jax.jit(lambda cache: cache.at[1, 3, 5].set(1.0), donate_argnums=0)
    compiled = write.lower(SPEC).compile()
    before = faults()
    cache = jax.block_until_ready(compiled(make()))
    assert faults() - before < 5000  # all of it would be 65,536 pages
    assert (cache[1, 3, 5] == 1).all()


def test_the_reference_is_zeros():
    cache = new_cache(jax.ShapeDtypeStruct((1, 1, 2, 1, 128), jnp.bfloat16), backend="reference")
    assert (cache == 0).all()
    assert cache.dtype == jnp.bfloat16
