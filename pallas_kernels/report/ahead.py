"""Compiles our attention kernel for a TPU without one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.ahead import compile_on
from emsjax.pallas_kernels.int8_cache import Cache, int8_cache_spec
from emsjax.pallas_kernels.kv_layout import rows_per_token
from emsjax.pallas_kernels.kv_rows import LANES
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention
from emsjax.pallas_kernels.report.work import Work

# Layers of the cache. The kernel reads one of them.
NUM_LAYERS = 4


def compile_attention(generation: str, work: Work, **options: Any) -> jax.stages.Compiled:
    """Compiles our attention kernel.

    Args:
      generation: one of `TOPOLOGIES`.
      work: the shapes.
      **options: see `attention_call`.

    Raises:
      Exception: the errors of the TPU compiler.
    """
    call = attention_call(work, "tpu", **options)
    return compile_on(generation, call, functools.partial(attention_arguments, work))


def attention_call(
    work: Work,
    backend: str | None,
    *,
    tree: bool = False,
    begun: bool = False,
    holed: bool = False,
    sinks: bool = False,
    **options: Any,
) -> Callable[..., jax.Array]:
    """Returns the attention of one layer, as a function of `attention_arguments`.

    Args:
      work: the shapes.
      backend: of `ragged_attention`.
      tree: whether to pass ancestors.
      begun: whether to pass `tree_starts`, too.
      holed: whether to pass holes.
      sinks: whether to pass sinks.
      **options: static options of `ragged_attention`.
    """
    _, num_kv_heads, head_dim = work.heads

    def call(
        q: jax.Array,
        cache: Cache,
        layer: jax.Array,
        cu_q_lens: jax.Array,
        kv_lens: jax.Array,
        ancestors: jax.Array,
    ) -> jax.Array:
        return ragged_attention(
            q,
            cache,
            layer=layer,
            cu_q_lens=cu_q_lens,
            kv_lens=kv_lens,
            num_kv_heads=num_kv_heads,
            max_q_len=work.max_q_len,
            scale=head_dim**-0.5,
            ancestors=ancestors if tree else None,
            tree_starts=jnp.maximum(kv_lens - work.max_q_len, 0) if begun else None,
            holes=some_holes(kv_lens, cache.shape[2]) if holed else None,
            sinks=some_sinks(kv_lens, q.shape[1]) if sinks else None,
            backend=backend,
            **options,
        )

    return call


def some_holes(kv_lens: jax.Array, capacity: int) -> jax.Array:
    """Returns holes, bool[B, S], that depend on `kv_lens`, so that no compiler can know them."""
    places = jnp.arange(capacity, dtype=jnp.int32)[None]
    return places % 7 == (kv_lens % 7)[:, None]


def some_sinks(kv_lens: jax.Array, num_heads: int) -> jax.Array:
    """Returns sinks, float32[N], that depend on `kv_lens`, so that no compiler can know them."""
    return jnp.arange(num_heads, dtype=jnp.float32) / (1 + kv_lens[0].astype(jnp.float32))


def dtype_of(work: Work) -> Any:
    """Returns the dtype of queries and results."""
    return jnp.bfloat16 if work.itemsize == 2 else jnp.float32


def cache_of(work: Work) -> Any:
    """Returns the shape and type of the cache on the target platform."""
    _, num_kv_heads, head_dim = work.heads
    place = NUM_LAYERS, work.num_slots, work.capacity
    if work.int8:
        return int8_cache_spec(*place, num_kv_heads, head_dim)
    shape = (*place, rows_per_token(num_kv_heads, head_dim), LANES)
    return jax.ShapeDtypeStruct(shape, dtype_of(work))


def attention_arguments(work: Work) -> tuple[Any, ...]:
    """Returns the abstract arguments of `attention_call`'s function on the target platform."""
    num_heads, _, head_dim = work.heads
    return (
        jax.ShapeDtypeStruct((work.num_rows, num_heads, head_dim), dtype_of(work)),
        cache_of(work),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((work.num_slots + 1,), jnp.int32),
        jax.ShapeDtypeStruct((work.num_slots,), jnp.int32),
        jax.ShapeDtypeStruct((work.num_rows,), jnp.uint32),
    )
