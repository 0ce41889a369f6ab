"""Ragged attention: each packed row attends to its own slot's cache, up to its own position."""

from types import MappingProxyType
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.backends import Backend, Backends, always_supported, pick, suited
from emsjax.pallas_kernels.cache_update.api import Places
from emsjax.pallas_kernels.checks import check_attention, check_lengths
from emsjax.pallas_kernels.int8_cache import Cache
from emsjax.pallas_kernels.norms import HeadNorms
from emsjax.pallas_kernels.ragged_attention import reference
from emsjax.pallas_kernels.value_checks import check_values


def _reference() -> Backend:
    return Backend(reference.prepare, always_supported)


def _cpu() -> Backend:
    from emsjax.pallas_kernels.ragged_attention import cpu

    return Backend(cpu.prepare, cpu.unsupported)


def _tpu() -> Backend:
    from emsjax.pallas_kernels.ragged_attention import tpu

    return Backend(tpu.prepare, tpu.unsupported)


def _gpu() -> Backend:
    from emsjax.pallas_kernels.ragged_attention import gpu

    return Backend(gpu.prepare, gpu.unsupported)


def _gpu_triton() -> Backend:
    from emsjax.pallas_kernels.ragged_attention import gpu_triton

    return Backend(gpu_triton.prepare, gpu_triton.unsupported)


BACKENDS: Backends = MappingProxyType(
    {
        "reference": _reference,
        "cpu": _cpu,
        "tpu": _tpu,
        "gpu": _gpu,
        "gpu-triton": _gpu_triton,
    }
)


def _packed_on_tpu() -> Backend:
    from emsjax.pallas_kernels.ragged_attention import tpu_packed

    return Backend(tpu_packed.prepare, tpu_packed.unsupported)


# Backends that begin with the rows of a fused query/key/value product.
PACKED: Backends = MappingProxyType({"tpu": _packed_on_tpu})


class Attend(Protocol):
    """`ragged_attention` without the arguments that `prepare` has already received."""

    def __call__(
        self,
        q: jax.Array,
        cache: Cache,
        *,
        layer: jax.Array,
        scale: float,
        window: int | jax.Array | None = None,
        sink_tokens: int | jax.Array | None = None,
        soft_cap: float | None = None,
        sinks: jax.Array | None = None,
    ) -> jax.Array:
        """Returns [T, N, H] in q's dtype; see `ragged_attention`."""


class AttendPacked(Protocol):
    """The part of an attention sublayer between its two products, in one layer."""

    def __call__(
        self,
        packed: jax.Array,
        cache: Cache,
        *,
        angles: tuple[jax.Array, jax.Array] | None,
        interleaved: bool,
        layer: jax.Array,
        scale: float,
        norms: HeadNorms | None = None,
        table: jax.Array | None = None,
        factor: jax.Array | None = None,
        window: int | jax.Array | None = None,
        sink_tokens: int | jax.Array | None = None,
        soft_cap: float | None = None,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Normalises and rotates queries and keys, writes keys and values, and attends.

        Args:
          packed: [T, (N + 2K)H], the heads of each row's queries, keys and values side by side.
          cache: as `prepare_packed` was given.
          angles: cosine and sine, float32[T, 1, pairs] each, of the first lanes of a head; or
            tables of them, float32[tables, T, 1, pairs]. None rotates nothing.
          interleaved: whether the lanes of a pair are neighbours rather than half a head apart.
          layer: as for `ragged_attention`.
          scale: as for `ragged_attention`.
          norms: of queries and keys before the rotation; None for none.
          table: int32[], which of the tables to use if there are several.
          factor: float32[T, 1, 1], factor on the queries after the rotation; None for none.
          window: as for `ragged_attention`.
          sink_tokens: as for `ragged_attention`.
          soft_cap: as for `ragged_attention`.
          sinks: as for `ragged_attention`.

        Returns:
          [T, N * H] in packed's dtype; and the updated cache.
        """


def ragged_attention(
    q: jax.Array,
    cache: Cache,
    *,
    layer: jax.Array,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    num_kv_heads: int,
    max_q_len: int,
    scale: float,
    window: int | jax.Array | None = None,
    sink_tokens: int | jax.Array | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    ancestors: jax.Array | None = None,
    tree_starts: jax.Array | None = None,
    holes: jax.Array | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Computes causal attention of every slot's rows over that slot's cache.

    The rows of slot b are the last `cu_q_lens[b+1] - cu_q_lens[b]` of its `kv_lens[b]` tokens. The
    cache already holds their K/V. The result for a row q at cache position p is

        k, v = keys and values of slot b at positions [0, kv_lens[b])
        s = soft_cap * tanh(scale * (k @ q) / soft_cap)      # plain scale * (k @ q) without cap
        softmax(s where position <= p and (position > p - window or position < sink_tokens)) @ v

    With `sinks`, the softmax has one more score, which takes a share of the weights but adds no
    value. Cache positions at or after `kv_lens` are never used, and blocks that a window hides from
    some rows are not read for these rows. A row's result does not depend on other slots, nor on
    later rows of its slot if their values are finite.

    Args:
      q: packed queries [T, N, H].
      cache: keys and values [L, B, S, R, 128], see `kv_layout`, or an `Int8Cache` of them. It is
        neither copied nor sliced as a whole.
      layer: int32[], the layer of the cache to read.
      cu_q_lens: int32[B+1], the first row of each slot, and then the number of used rows, which is
        at most T.
      kv_lens: int32[B], valid tokens of each slot, including its rows; at most S.
      num_kv_heads: K, a divisor of N.
      max_q_len: static bound on the rows of one slot; changing it recompiles.
      scale: factor on the scores.
      window: sliding window in tokens, including the row's own; None for no window.
      sink_tokens: how many of each slot's first positions the window does not hide; None for none.
        Requires a window.
      soft_cap: logit soft cap; None for none.
      sinks: float32[N], each head's additional score in the softmax; None for none. Neither `scale`
        nor `soft_cap` changes it.
      ancestors: uint32[T], for token trees. A row attends to the j-th row of its slot in this
        buffer if its bit j is set. Its own bit must be set. A slot with more than 32 rows must be a
        chain, with all bits set. A window counts only rows that are attended to, and must be at
        least as long as a tree has rows. None if each slot's rows are a chain.
      tree_starts: int32[B], the cache position of each tree's first row if earlier rows than this
        buffer's belong to it; row j then counts from there. At most `kv_lens` less the slot's rows.
        None if trees start with the buffer's rows.
      holes: bool[B, S], positions before `kv_lens` that hold no token and are not attended to.
        Their contents must be finite. A window counts them. None if there are no holes.
      backend: "reference" (XLA, on any platform), "cpu", "tpu", "gpu" (Hopper) or "gpu-triton"
        (since Ampere). None selects the platform's first kernel that supports these arguments, and
        the reference otherwise.

    Returns:
      [T, N, H] in q's dtype; zeros in unused rows.

    Raises:
      ValueError: an argument has the wrong shape or type, or the named backend cannot be used.
    """
    attend = prepare(
        q,
        cache,
        cu_q_lens=cu_q_lens,
        kv_lens=kv_lens,
        num_kv_heads=num_kv_heads,
        max_q_len=max_q_len,
        ancestors=ancestors,
        tree_starts=tree_starts,
        holes=holes,
        backend=backend,
    )
    return attend(
        q,
        cache,
        layer=layer,
        scale=scale,
        window=window,
        sink_tokens=sink_tokens,
        soft_cap=soft_cap,
        sinks=sinks,
    )


def prepare(
    q: jax.Array | jax.ShapeDtypeStruct,
    cache: Cache | jax.ShapeDtypeStruct,
    *,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    num_kv_heads: int,
    max_q_len: int,
    ancestors: jax.Array | None = None,
    tree_starts: jax.Array | None = None,
    holes: jax.Array | None = None,
    backend: str | None = None,
) -> Attend:
    """Cuts the rows into tiles once for all layers of a step and returns the layers' attention.

    Call it outside the loop over layers, which would otherwise cut the tiles again in every layer.
    The arguments have the meaning they have for `ragged_attention`.

    Args:
      q: queries, or only their shape [T, N, H] and dtype.
      cache: keys and values, or only their shape [L, B, S, R, 128] and dtype.
      cu_q_lens: int32[B+1].
      kv_lens: int32[B].
      num_kv_heads: K.
      max_q_len: static bound on the rows of one slot.
      ancestors: uint32[T] or None.
      tree_starts: int32[B] or None.
      holes: bool[B, S] or None.
      backend: a backend's name or None.

    Raises:
      ValueError: an argument has the wrong shape or type, or the named backend cannot be used.
    """
    cu_q_lens, kv_lens = map(jnp.asarray, (cu_q_lens, kv_lens))
    trees = ancestors, tree_starts
    check_lengths(q, cache, cu_q_lens, kv_lens, trees, num_kv_heads, max_q_len, holes)
    implementation = pick("ragged_attention", BACKENDS, backend, q, cache, num_kv_heads)
    sizes = {"num_kv_heads": num_kv_heads, "max_q_len": max_q_len, "tree_starts": tree_starts}
    run = implementation(q, cache, cu_q_lens, kv_lens, ancestors, holes, **sizes)
    shapes = (q.shape, q.dtype), (cache.shape, cache.dtype)

    def attend(
        q: jax.Array,
        cache: Cache,
        *,
        layer: jax.Array,
        scale: float,
        window: int | jax.Array | None = None,
        sink_tokens: int | jax.Array | None = None,
        soft_cap: float | None = None,
        sinks: jax.Array | None = None,
    ) -> jax.Array:
        layer = jnp.asarray(layer)
        check_attention(q, cache, shapes, layer, scale, window, sink_tokens, soft_cap, sinks)
        check_values(
            cu_q_lens,
            kv_lens,
            layer,
            window=window,
            num_rows=q.shape[0],
            max_q_len=max_q_len,
            cache_shape=cache.shape,
        )
        return run(
            q,
            cache,
            layer,
            scale=scale,
            window=window,
            sink_tokens=sink_tokens,
            soft_cap=soft_cap,
            sinks=sinks,
        )

    return attend


def prepare_packed(
    q: jax.ShapeDtypeStruct,
    cache: Cache | jax.ShapeDtypeStruct,
    *,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    num_kv_heads: int,
    max_q_len: int,
    slot_ids: jax.Array,
    places: Places,
    ancestors: jax.Array | None = None,
    tree_starts: jax.Array | None = None,
    holes: jax.Array | None = None,
) -> AttendPacked | None:
    """Returns an attention that begins with the rows of a fused product; otherwise as `prepare`.

    It also rotates queries and keys and writes the cache. Done separately, rotation, cache update
    and attention take more launches.

    Args:
      q: the shape [T, N, H] and dtype of the queries.
      cache: as for `prepare`.
      cu_q_lens: as for `prepare`.
      kv_lens: as for `prepare`.
      num_kv_heads: as for `prepare`.
      max_q_len: as for `prepare`.
      slot_ids: int32[T], the slot of each row; B for an unused row.
      places: where the rows' K/V belong, see `cache_update.api.cache_places`.
      ancestors: as for `prepare`.
      tree_starts: as for `prepare`.
      holes: as for `prepare`.

    Returns:
      The layers' attention; None if the platform has no kernel for these arguments.
    """
    name = suited(PACKED, q, cache, num_kv_heads, max_q_len)
    if name not in PACKED:
        return None
    run = PACKED[name]().run(
        q,
        cache,
        cu_q_lens,
        kv_lens,
        ancestors,
        holes,
        slot_ids,
        places,
        num_kv_heads=num_kv_heads,
        max_q_len=max_q_len,
        tree_starts=tree_starts,
    )

    def attend(
        packed: jax.Array,
        cache: Cache,
        *,
        layer: jax.Array,
        window: int | jax.Array | None = None,
        **options: Any,
    ) -> tuple[jax.Array, Cache]:
        check_values(
            cu_q_lens,
            kv_lens,
            layer,
            slot_ids,
            window,
            places,
            num_rows=q.shape[0],
            max_q_len=max_q_len,
            cache_shape=cache.shape,
        )
        found = run(packed, cache, layer=layer, window=window, **options)
        return cast(tuple[jax.Array, Cache], found)

    return attend
